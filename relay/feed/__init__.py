"""IO: holds one planned connection of a provider for ever: connect, session, decide by `retry`, again.

Nothing here knows a provider or what becomes of its outputs: those go to a `Handler`. `feed` is the loop around
sessions, `session` one session, `connection` the WebSocket and what its errors mean, `limits` what all sessions of a
provider share, `rest` the calls that providers ask for.
"""

from relay.feed.feed import Feed
from relay.feed.handler import FeedStats, Handler, Lane
from relay.feed.limits import SharedLimits
from relay.feed.session import BATCH_FRAMES

__all__ = ["BATCH_FRAMES", "Feed", "FeedStats", "Handler", "Lane", "SharedLimits"]
