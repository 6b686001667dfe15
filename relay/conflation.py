"""Quotes that give way to newer ones: thinned by time (`interval_ms`), or for want of room (`when_full: latest`).

Before numbering, so that a conflated quote leaves no hole, and counted. A quote that was kept back is published with
the time of that moment: ids must rise. Pure.
"""

from collections.abc import Callable

from relay.model import Header
from relay.routes import Route, Source, TopicLike

Put = Callable[[Source, TopicLike, Header, int], None]


class Conflation:
    """The quotes that one intake keeps back, one a route. `pressed`: tells whether there is no room for more."""

    __slots__ = ("_held", "_put", "pressed")

    def __init__(self, put: Put) -> None:
        self._put = put
        self._held: dict[Route, Source] = {}
        self.pressed: Callable[[], bool] = lambda: False

    def __bool__(self) -> bool:
        """Whether anything is kept back."""
        return bool(self._held)

    def holds(self, source: Source, route: Route, message: Header, now_ns: int) -> bool:
        """Keep a quote for later where its time has not come, or where there is no room; an older one gives way."""
        if route.held is not None:
            source.counts.conflated += 1
            source.counts.held -= 1
            route.held = None
        if now_ns < route.due_ns or self._waits(route):
            route.held = message
            source.counts.held += 1
            self._held[route] = source
            return True
        route.due_ns = now_ns + route.thin_ns
        return False

    def _waits(self, route: Route) -> bool:
        return route.latest and (route.topic.full or self.pressed())

    def let_go(self, source: Source, route: Route, now_ns: int) -> None:
        """Publish the quote that a route has kept, with this moment's time."""
        message, route.held = route.held, None
        if message is not None:
            source.counts.held -= 1
            source.counts.published += 1
            route.due_ns = now_ns + route.thin_ns
            self._put(source, route.topic, message, now_ns)

    def release(self, now_ns: int, *, all_of_them: bool = False) -> int:
        """Publish the quotes whose time has come. Give their number."""
        found = 0
        for route, source in list(self._held.items()):
            if route.held is None:
                del self._held[route]
            elif all_of_them or (now_ns >= route.due_ns and not self._waits(route)):
                del self._held[route]
                self.let_go(source, route, now_ns)
                found += 1
        return found
