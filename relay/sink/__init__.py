"""IO: what waits in the outbox goes to Redis by compare and append, each entry once and in order (design.md 5).

`Sink` runs the one connection that writes; `Server` says where Redis is; `reactions` is the table of Redis errors.
"""

from relay.sink.link import Server
from relay.sink.reactions import REACTIONS, Fenced, LeaseHeld, Unsupported, reaction
from relay.sink.sink import Sink, SinkStats

__all__ = ["REACTIONS", "Fenced", "LeaseHeld", "Server", "Sink", "SinkStats", "Unsupported", "reaction"]
