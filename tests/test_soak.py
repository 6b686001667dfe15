"""Minutes of an outage at full rate: what is bounded stays bounded, what is missed is told."""

import time
from pathlib import Path

import pytest
import redis
from relays import Process
from servers import RedisServer
from sinks import dose
from test_faults import NAMES, provider, stop, verdict_of, wait_for_more, write


def _newest(client: "redis.Redis") -> int:
    return min(int(client.xrevrange(name, count=1)[0][0].partition("-")[0]) for name in NAMES)


@pytest.mark.soak
@pytest.mark.usefixtures("timed")
def test_outage_beyond_the_spool_is_bounded_and_told(tmp_path: Path) -> None:
    """Redis is away for a minute (RELAY_TEST_DOSE: more): memory and disk stay bounded, what was missed has numbers."""
    extra = "spool: {segment_bytes: 8000000, bytes_max: 200000000}\nmemory_mb_max: 256"
    server = RedisServer("--appendonly", "yes", "--dir", str(tmp_path))
    try:
        with (
            provider(20_000) as port,
            Process(tmp_path, "run", "-c", write(tmp_path, server.url, port, extra)) as process,
        ):
            wait_for_more(server, process)
            server.kill()
            worst = disk = 0.0
            end = time.monotonic() + dose(60)
            while time.monotonic() < end:
                status = Path(f"/proc/{process.process.pid}/status").read_text()
                worst = max(worst, int(status.partition("VmRSS:")[2].split()[0]) / 1000)
                disk = max(disk, sum(path.stat().st_size for path in tmp_path.glob("state/spool/*/*.spool")) / 1e6)
                assert process.process.poll() is None, process.text
                time.sleep(0.2)
            server.start()
            begun = time.monotonic()
            process.until(lambda: "Redis is back" in process.text, 120)
            back = time.monotonic() - begun
            with server.client() as client:
                # until what comes is of this moment: all that waited is in, and the provider is connected again
                process.until(lambda: _newest(client) > (time.time() - 0.3) * 1000, 240)
            behind = time.monotonic() - begun - back
            wait_for_more(server, process)
            stop(process)
        verdict = verdict_of(server)
        figures = f"RSS {worst:.0f} MB, spool {disk:.0f} MB, back after {back:.1f} s, live {behind:.1f} s later"
        print(f"\naway {dose(60)} s: {figures}: {verdict}")
        assert worst < 256 and disk < 200 * 9 / 8 + 8
        assert verdict.right, str(verdict)
        assert verdict.missing > 0, "the spool's limit was reached"
    finally:
        server.close()
