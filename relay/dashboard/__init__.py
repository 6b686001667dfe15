"""The web page of `relay dashboard`: a consumer of Redis like any other, and nothing else.

`state` is what is known (pure), `reader` reads the streams into it, `hub` keeps each browser current, `server` is the
HTTP side. It never speaks to a provider and writes nothing, neither to Redis nor to disk.
"""

from relay.dashboard.server import Dashboard, Settings

__all__ = ["Dashboard", "Settings"]
