"""IO: what waits in the outbox goes to Redis by compare and append, each entry once and in order (design.md 5).

`Sink` runs the one connection that writes; `reactions` is the table of Redis errors.
"""

from relay.sink.pace import SinkStats
from relay.sink.reactions import REACTIONS, Fenced, LeaseHeld, Unsupported, reaction
from relay.sink.sink import Sink

__all__ = ["REACTIONS", "Fenced", "LeaseHeld", "Sink", "SinkStats", "Unsupported", "reaction"]
