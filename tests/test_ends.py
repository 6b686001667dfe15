"""How `relay run` ends: in good order, at once, and for reasons that it says in one line."""

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from relays import Process
from servers import RedisServer

TEXT = """
name: hand
state_dir: {state}
redis: {{url: "{url}"}}
simulator: {{rate: 200}}
providers:
  coinbase: {{simulate: true, trades: [BTC-USD, ETH-USD]}}
"""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@contextlib.contextmanager
def relay(server: RedisServer, folder: Path, name: str, *options: str) -> Iterator[Process]:
    """`relay run` in a folder of its own: another machine with the same configuration."""
    place = folder / name
    place.mkdir()
    (place / "relay.yaml").write_text(TEXT.format(state=place / "state", url=server.url))
    with Process(place, "run", *options) as process:
        yield process


def flows(server: RedisServer, process: Process) -> None:
    with server.client() as client:
        before = client.xlen("sim.trades.BTC-USD")
        process.until(lambda: client.xlen("sim.trades.BTC-USD") > before + 5)


def last_line(process: Process) -> str:
    assert "Traceback" not in process.text, process.text
    return process.text.splitlines()[-1]


@pytest.mark.fault
def test_second_relay_of_a_name_is_refused_in_one_line_and_may_take_over(server: RedisServer, tmp_path: Path) -> None:
    with relay(server, tmp_path, "one") as one:
        flows(server, one)
        with relay(server, tmp_path, "two") as two:
            assert two.process.wait(15) == 1
            assert last_line(two).startswith("relay: a relay named 'hand' already runs")
            assert "start it with --takeover" in last_line(two)
        flows(server, one)
        with relay(server, tmp_path, "three", "--takeover") as three:
            flows(server, three)
            assert one.process.wait(15) == 1
            assert "has taken over" in last_line(one) and last_line(one).endswith("this one stops writing")
            flows(server, three)
            assert three.stop(signal.SIGTERM, 12) == 0
            assert '"stopped"' in last_line(three)


@pytest.mark.fault
def test_second_signal_ends_it_now(server: RedisServer, tmp_path: Path) -> None:
    with relay(server, tmp_path, "one") as one:
        flows(server, one)
        server.signal(signal.SIGSTOP)
        time.sleep(0.3)  # a call is on its way, which nobody answers: the first signal waits for it
        one.process.send_signal(signal.SIGTERM)
        one.until(lambda: '"stopping"' in one.text)
        begun = time.monotonic()
        assert one.stop(signal.SIGTERM, 3) == 143
        assert time.monotonic() - begun < 1.0
        server.signal(signal.SIGCONT)
        assert "Traceback" not in one.text


@pytest.mark.fault
def test_stop_without_redis_keeps_what_waits_and_says_so(server: RedisServer, tmp_path: Path) -> None:
    with relay(server, tmp_path, "one") as one:
        flows(server, one)
        server.kill()
        one.until(lambda: "Redis is away" in one.text)
        begun = time.monotonic()
        assert one.stop(signal.SIGTERM, 10) == 0
        assert time.monotonic() - begun < 5.0
        assert "what Redis could not take waits in the spool for the next start" in one.text
        assert '"stopped"' in last_line(one)
