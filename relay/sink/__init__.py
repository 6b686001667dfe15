"""IO: what waits in the outbox goes to Redis by compare and append, each entry once and in order (design.md 5).

`Sink` runs the one connection that writes, `ClusterSink` one to each primary of a cluster; `reactions` is the table of
Redis errors.
"""

from typing import Any

from relay.sink.cluster import ClusterSink
from relay.sink.pace import SinkStats
from relay.sink.reactions import CLUSTER_REACTIONS, REACTIONS, Fenced, LeaseHeld, Unsupported, reaction
from relay.sink.sink import Sink
from relay.sink.standing import Active, Found, Standing
from relay.targets import target_of


def sink_to(*, url: str, **kwargs: Any) -> Sink:
    """Make the sink that an address asks for; the arguments are those of `Sink`."""
    target = target_of(url)
    return (ClusterSink if target is not None and target.kind == "cluster" else Sink)(url=url, **kwargs)


__all__ = [
    "CLUSTER_REACTIONS",
    "REACTIONS",
    "Active",
    "ClusterSink",
    "Fenced",
    "Found",
    "LeaseHeld",
    "Sink",
    "SinkStats",
    "Standing",
    "Unsupported",
    "reaction",
    "sink_to",
]
