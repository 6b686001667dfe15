"""The standing price of one instrument, built from sparse updates (rules R9, R11 and R12 of the provider's sheet).

One object an instrument and connection; it dies with the session, a new session is seeded by snapshots.
"""


class Standing:
    """What is known of one instrument's price, and when the newest accepted update was."""

    __slots__ = ("ask", "bid", "heard_ns", "last", "polled_ns", "rest_shown", "rate_id", "stamp", "time", "watermark")

    def __init__(self, now_ns: int = 0) -> None:
        self.bid: str | None = None
        self.ask: str | None = None
        self.last: str | None = None
        self.watermark: int | None = None
        """Time of the newest dated update; what is older is late."""
        self.stamp: int | None = None
        self.rate_id: str | None = None
        self.time: int | None = None
        """Time of the quote as it stands, ns; None where its update had none."""
        self.heard_ns = now_ns
        """When a price of it came last, on our clock."""
        self.polled_ns = 0
        self.rest_shown: tuple[str, int | None] | None = None
        """The last fallback that was published: (mid, time)."""

    def apply(
        self, bid: str | None, ask: str | None, last: str | None, time: int | None, rate_id: str | None, snapshot: bool
    ) -> bool:
        """Take one update and tell whether a quote is to be published.

        None is an absent field, `last` as empty text clears it. At least one field is there.
        """
        if time is not None and self.watermark is not None and time < self.watermark:
            return snapshot and self._fill(bid, ask)
        changed = False
        if bid is not None and bid != self.bid:
            self.bid, changed = bid, True
        if ask is not None and ask != self.ask:
            self.ask, changed = ask, True
        if last is not None and last != (self.last or ""):
            self.last, changed = last or None, True
        if not changed and (rate_id == self.rate_id if rate_id is not None else time == self.stamp):
            return False
        self.rate_id, self.stamp, self.time = rate_id, time, time
        if time is not None:
            self.watermark = time
        return self.bid is not None or self.ask is not None

    def _fill(self, bid: str | None, ask: str | None) -> bool:
        """Let a late snapshot fill a side that is still unknown; it never overwrites."""
        filled = False
        if self.bid is None and bid is not None:
            self.bid, filled = bid, True
        if self.ask is None and ask is not None:
            self.ask, filled = ask, True
        if filled:
            self.time = self.watermark
        return filled
