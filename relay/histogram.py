"""Distributions as plain ints: cheap to add to, read only when somebody asks. Pure."""

from bisect import bisect_left

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds for everything that takes time here: the promise is one to ten milliseconds, the worst is an outage."""
ENTRIES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""Upper bounds for the size of a batch; a call carries at most 1,000 entries."""


class Histogram:
    """How often a value fell between two bounds. `counts` has one place more than `bounds`: what is above them all."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, weight: int = 1) -> None:
        """Count a value, for `weight` things that it stands for."""
        self.counts[bisect_left(self.bounds, value)] += weight
        self.total += value * weight

    @property
    def count(self) -> int:
        """How much was counted."""
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, int]]:
        """Give (upper bound, count at or below it), the last one `+Inf`: what Prometheus wants."""
        out, seen = [], 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            out.append((repr(bound), seen))
        return [*out, ("+Inf", seen + self.counts[-1])]

    def quantile(self, share: float) -> float | None:
        """Give the upper bound of the bucket in which this share of all lies; None where nothing was counted."""
        wanted, seen = share * self.count, 0
        if not wanted:
            return None
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            if seen >= wanted:
                return bound
        return self.bounds[-1]
