"""The clock never falls, can be lifted, and goes on at its usual pace."""

from hypothesis import given
from hypothesis import strategies as st

from relay.clock import CATCH_UP_NS, MS, Clock

START = 1_772_359_200_000_000_000


class Hands:
    """A wall clock and a monotonic one, moved by hand."""

    def __init__(self) -> None:
        self.wall, self.steady = START, 77

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.steady)

    def move(self, ns: int) -> None:
        self.wall += ns
        self.steady += ns


def test_it_starts_at_wall_time_and_follows_the_monotonic_one():
    hands = Hands()
    clock = hands.clock()
    assert clock() == START
    hands.steady += 1234
    hands.wall -= 10**12  # somebody sets the wall clock back
    assert clock() == START + 1234


def test_a_floor_lifts_it_above_that_millisecond_and_it_goes_on_from_there():
    hands = Hands()
    clock = hands.clock()
    floor = START // MS + 5000
    clock.raise_floor(floor)
    assert clock() == (floor + 1) * MS
    hands.move(10)
    assert clock() == (floor + 1) * MS + 10


def test_a_floor_below_changes_nothing():
    hands = Hands()
    clock = hands.clock()
    clock.raise_floor(START // MS - 1)
    assert clock() == START


def test_catching_up_follows_a_wall_clock_that_is_ahead_and_never_one_behind():
    hands = Hands()
    clock = hands.clock()
    hands.wall += 3600 * 10**9  # the machine slept: the monotonic clock stood still
    assert clock.catch_up() == 3600 * 10**9
    assert clock() == hands.wall
    hands.wall -= 10**12
    assert clock.catch_up() == 0
    hands.wall = clock() + CATCH_UP_NS - 1
    assert clock.catch_up() == 0


moves = st.one_of(
    st.tuples(st.just("pass"), st.integers(0, 10**10)),
    st.tuples(st.just("set wall"), st.integers(-(10**13), 10**13)),
    st.tuples(st.just("floor"), st.integers(-(10**6), 10**6)),
    st.tuples(st.just("catch up"), st.just(0)),
)


@given(st.lists(moves, max_size=30))
def test_it_never_falls(steps):
    hands = Hands()
    clock = hands.clock()
    last = clock()
    for what, by in steps:
        if what == "pass":
            hands.move(by)
        elif what == "set wall":
            hands.wall += by
        elif what == "floor":
            clock.raise_floor(clock() // MS + by)
        else:
            clock.catch_up()
        assert clock() >= last
        last = clock()


def test_by_default_it_tells_the_time_of_day():
    import time

    assert abs(Clock()() - time.time_ns()) < 10**9
