"""Active and standby whose Redis fails over to a replica that had lagged: with the writer alive, and with its end."""

from pathlib import Path

import pytest
from checker import check, streams
from pairs import Node, pair
from sentinels import SENTINELS_PASSWORD, Service
from servers import RedisServer
from sinks import dose
from test_faults import NAMES, provider
from test_sentinel import Failovers
from test_standby_faults import TRADES, one_writer_at_a_time, stop_both, writer_of

pytestmark = pytest.mark.fault
OPTIONS = f', sentinel_password: "{SENTINELS_PASSWORD}"'


def test_failover_of_redis_with_and_without_the_writer_leaves_no_silent_hole(tmp_path: Path) -> None:
    """What the new primary lacks comes from the writer's spool; where the writer is gone as well, from the ring of the
    node that takes over. Lease, epoch and fences of the last seconds may be lost too: no two write at one time."""
    service = Service()
    failovers = Failovers(service)
    try:
        with (
            provider(2000) as port,
            pair(tmp_path, service, port, TRADES, lease=1.0, ring=20.0, options=OPTIONS) as nodes,
        ):
            for number in range(dose(3)):
                writer = writer_of(nodes)
                other = nodes[writer is nodes[0]]

                def dies(old: RedisServer, writer: Node = writer) -> None:
                    writer.kill()

                def is_followed(old: RedisServer, writer: Node = writer, other: Node = other) -> None:
                    """No replica hears of the takeover."""
                    writer.kill()
                    other.until_active()
                    failovers.grows(old, 500)

                failovers.once("kill", (lambda old: None, dies, is_followed)[number % 3])
                if writer.process is None:
                    writer.start()
            stop_both(nodes)
        verdict = check(streams(service.direct, NAMES))
        print(f"\nfailovers under a pair x {dose(3)}: {verdict}")
        assert verdict.right, str(verdict)
        one_writer_at_a_time(service.direct)
    finally:
        service.close()
