import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.outbox import BLOCKED_SHARE, ENTRY_COST, Outbox

BODY = b"x" * 100
COST = len(BODY) + ENTRY_COST


def filled(outbox: Outbox, name: str, count: int, body: bytes = BODY):
    topic = outbox.topic(name, "quotes", "p")
    for _ in range(count):
        topic.seq += 1
        outbox.add(topic, f"1000-{topic.seq}", body)
    return topic


def test_take_leaves_entries_until_done():
    outbox = Outbox(1 << 20, 1 << 20)
    topic = filled(outbox, "a", 3)
    assert outbox.take(10, 1 << 20) == [(topic, 3)]
    assert outbox.take(10, 1 << 20) == [(topic, 3)]
    filled(outbox, "a", 1)
    assert outbox.done(topic, 3) == 3 * COST
    assert topic.ids == ["1000-4"] and outbox.size == topic.size == COST
    outbox.done(topic, 1)
    assert outbox.take(10, 1 << 20) == [] and outbox.size == 0 and outbox.entries() == 0


def test_topic_is_made_once_and_knows_the_earlier_run():
    outbox = Outbox(1 << 20, 1 << 20)
    outbox.earlier = {"a": "5-1"}
    assert outbox.topic("a", "quotes", "p") is outbox.topic("a", "other", "q")
    assert outbox.topic("a", "quotes", "p").last_id == "5-1"
    assert outbox.topic("b", "quotes", "p").last_id is None


@pytest.mark.parametrize(
    ("entries", "size", "counts"),
    [
        (2, 1 << 20, [2]),
        (4, 1 << 20, [3, 1]),
        (100, 4 * len(BODY), [3, 1]),
        (100, 4 * len(BODY) - 1, [3]),
        (100, len(BODY) - 1, [1]),  # larger than a call: alone
        (100, 2 * len(BODY), [2]),
    ],
)
def test_take_keeps_both_bounds(entries, size, counts):
    outbox = Outbox(1 << 20, 1 << 20)
    filled(outbox, "a", 3)
    filled(outbox, "b", 3)
    assert [count for _, count in outbox.take(entries, size)] == counts


def test_large_entry_waits_for_a_call_of_its_own():
    outbox = Outbox(1 << 20, 1 << 20)
    small = filled(outbox, "a", 1)
    large = filled(outbox, "b", 1, b"y" * 5000)
    assert outbox.take(100, 1000) == [(small, 1)]
    outbox.done(small, 1)
    assert outbox.take(100, 1000) == [(large, 1)]


def test_busy_topic_lets_the_others_come_next():
    outbox = Outbox(1 << 20, 1 << 20)
    busy, quiet = filled(outbox, "busy", 10), filled(outbox, "quiet", 1)
    assert outbox.take(5, 1 << 20) == [(busy, 5)]
    outbox.done(busy, 5)
    assert outbox.take(5, 1 << 20) == [(quiet, 1), (busy, 4)]


@pytest.mark.parametrize("cap", ["all", "topic"])
def test_full_at_a_bound_and_not_below(cap):
    outbox = Outbox(3 * COST, 1 << 20) if cap == "all" else Outbox(1 << 20, 3 * COST)
    topic = filled(outbox, "a", 3)
    assert not outbox.full
    filled(outbox, "a", 1)
    assert outbox.full and not topic.full
    outbox.done(topic, 1)
    assert not outbox.full


def test_blocked_topic_never_stops_the_others():
    outbox = Outbox(100 * COST, 10 * COST)
    bad, good = filled(outbox, "bad", 11), filled(outbox, "good", 1)
    assert outbox.full
    outbox.block(bad, "WRONGTYPE")
    assert not outbox.full and bad.full and not good.full
    assert outbox.take(100, 1 << 20) == [(good, 1)]
    filled(outbox, "bad", 50)  # an intake that does not ask: kept, never dropped
    assert not outbox.full and len(bad.ids) == 61
    filled(outbox, "good", 9)
    assert not outbox.full
    outbox.unblock(bad)
    assert not bad.full and outbox.full and outbox.held == 0
    assert dict(outbox.take(1000, 1 << 20)) == {good: 10, bad: 61}


def test_room_of_blocked_topics_together_is_bounded():
    outbox = Outbox(100 * COST, 20 * COST)
    topics = [filled(outbox, f"t{n}", 0) for n in range(10)]
    for topic in topics:
        outbox.block(topic, "OWNED other")
    kept = 0
    for _ in range(20):
        for topic in topics:
            if not topic.full:
                outbox.add(topic, "1-1", BODY)
                kept += 1
    assert 100 // BLOCKED_SHARE <= kept <= 100 // BLOCKED_SHARE + len(topics)
    assert not outbox.full and outbox.held == outbox.size


def test_blocked_topic_below_its_cap_still_takes():
    outbox = Outbox(1 << 20, 10 * COST)
    topic = filled(outbox, "a", 1)
    outbox.block(topic, "NOPERM")
    assert not topic.full
    filled(outbox, "a", 8)
    assert not topic.full
    filled(outbox, "a", 1)
    assert topic.full
    outbox.unblock(topic)
    assert outbox.held == 0 and outbox.limit == outbox.bytes_max and not topic.full


def test_replace_keeps_the_account():
    outbox = Outbox(1 << 20, 1 << 20)
    topic = filled(outbox, "a", 2)
    outbox.replace(topic, ["2000-1", "2000-2"], [b"abc", b"de"])
    assert outbox.size == topic.size == 5 + 2 * ENTRY_COST
    outbox.done(topic, 2)
    assert outbox.size == 0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 3), st.integers(0, 60)),
            st.tuples(st.just("done"), st.integers(1, 6), st.integers(1, 900)),
            st.tuples(st.sampled_from(["block", "unblock"]), st.integers(0, 3), st.just(0)),
        ),
        max_size=60,
    )
)
def test_account_and_order_hold_through_any_history(history):
    outbox = Outbox(2_000, 1_000)
    topics = [outbox.topic(f"t{n}", "quotes", "p") for n in range(4)]
    stored = {topic: [] for topic in topics}
    for what, one, two in history:
        if what == "add":
            topics[one].seq += 1
            outbox.add(topics[one], f"1-{topics[one].seq}", b"x" * two)
        elif what == "done":
            batch = outbox.take(one, two)
            assert sum(count for _, count in batch) <= one and bool(batch) == bool(outbox.waiting)
            size = sum(len(body) for topic, count in batch for body in topic.data[:count])
            assert size <= two or [count for _, count in batch] == [1]
            for topic, count in batch:
                assert not topic.blocked
                stored[topic] += topic.ids[:count]
                outbox.done(topic, count)
        elif what == "block":
            outbox.block(topics[one], "WRONGTYPE")
        else:
            outbox.unblock(topics[one])
        sizes = {topic: sum(map(len, topic.data)) + ENTRY_COST * len(topic.ids) for topic in topics}
        assert [topic.size for topic in topics] == list(sizes.values()) and outbox.size == sum(sizes.values())
        held = sum(size for topic, size in sizes.items() if topic.blocked)
        assert outbox.held == held and set(outbox.waiting) == {t for t in topics if t.ids and not t.blocked}
        over = any(size > 1_000 for topic, size in sizes.items() if not topic.blocked)
        assert outbox.full == (over or outbox.size - held > 2_000)
    for topic in topics:
        assert stored[topic] + topic.ids == [f"1-{n + 1}" for n in range(topic.seq)]


def test_add_is_cheap():
    """The hot path: the target is 0.25 us, the bound leaves room for a busy machine."""
    outbox = Outbox(1 << 40, 1 << 40)
    topic = outbox.topic("a", "quotes", "p")
    add = outbox.add

    def burst():
        for _ in range(10_000):
            add(topic, "1-1", BODY)

    assert min(timeit.repeat(burst, number=1, repeat=7)) / 10_000 < 1e-6
