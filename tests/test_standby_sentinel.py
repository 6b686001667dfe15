"""Active and standby whose Redis fails over to a replica that had lagged: with the writer alive, and with its end."""

from pathlib import Path

import pytest
from checker import check, streams
from pairs import pair
from sentinels import SENTINELS_PASSWORD, Service, wait
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
                if number % 3 == 0:
                    failovers.once("kill")
                    continue
                service.settle()
                old = service.primary
                service.cut_off_replicas()
                failovers.grows(old, 1000)
                if number % 3 == 1:  # both at once
                    writer.kill()
                    old.kill()
                else:  # a takeover that no replica has heard of, then the server
                    writer.kill()
                    nodes[writer is nodes[0]].until_active()
                    failovers.grows(old, 500)
                    old.kill()
                wait(lambda old=old: service.primary is not old, "a failover")
                failovers.flows(f"round {number}")
                service.reconcile()
                writer.start()
            stop_both(nodes)
        verdict = check(streams(service.direct, NAMES))
        print(f"\nfailovers under a pair x {dose(3)}: {verdict}")
        assert verdict.right, str(verdict)
        one_writer_at_a_time(service.direct)
    finally:
        service.close()
