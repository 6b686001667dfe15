"""The map of a cluster: slots of names, what nodes say, whose word counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.sink.slots import SLOTS, Slots, View, host_of, merge, read_view, redirect, slot_of


@pytest.mark.parametrize(
    ("key", "slot"),
    # CLUSTER KEYSLOT of a server
    [("123456789", 12739), ("foo", 12182), ("foo{hash_tag}", 2515), ("{}bar", 6479), ("foo{}{bar}", 8363),
     ("foo{{bar}}zap", 4015), ("foo{bar}{zap}", 5061), ("quotes.EUR-USD", 9286), ("trades.ÄÖ", 4938)],
)  # fmt: skip
def test_slot_is_the_server_s(key: str, slot: int) -> None:
    assert slot_of(key) == slot


@given(st.from_regex(r"\A[A-Za-z0-9._:-]{1,60}\Z"))
def test_writer_key_lies_with_its_stream(name: str) -> None:
    assert slot_of(f"relay:writer:{{{name}}}") == slot_of(name)


def view(node: str, epoch: int, *ranges: tuple[int, int, str]) -> View:
    return View(node, epoch, ranges, {name: f"{name}:1" for _, _, name in ranges} | {node: f"{node}:1"})


def test_owner_s_own_word_counts_more_than_news_of_it() -> None:
    # b has taken slot 7 over from a; c knows of a's newest epoch and not of the move
    a = view("a", 12, (0, 6, "a"), (7, 7, "b"))
    b = view("b", 11, (7, 7, "b"))
    c = view("c", 20, (0, 7, "a"))
    for views in ([a, b, c], [c, b, a]):
        assert merge(views).owners[:8] == ["a:1"] * 7 + ["b:1"]


def test_primary_that_was_cut_off_does_not_keep_what_its_replica_took_over() -> None:
    assert merge([view("old", 1, (0, 9, "old")), view("new", 7, (0, 9, "new"))]).owners[3] == "new:1"


def test_node_that_was_not_heard_is_known_by_the_others() -> None:
    slots = merge([view("a", 2, (0, 1, "a"), (5, 6, "dead"))])
    assert slots.owners[4:7] == ["", "dead:1", "dead:1"] and slots.nodes == {"a:1", "dead:1"}


def test_slot_that_nobody_claims_stays_where_most_recently_said() -> None:
    # the source says that the slot has gone to b; b has not heard of it yet
    assert merge([view("a", 1, (3, 3, "b")), view("b", 2, (0, 1, "b"), (3, 3, "a"))]).owners[3] in ("a:1", "b:1")


def test_replies_are_read() -> None:
    slots = [
        [0, 5460, [b"10.0.0.1", 7000, b"n1", []], [b"10.0.0.4", 7003, b"n4"]],
        [5461, SLOTS - 1, [b"", 7001, b"n2", []], [b"?", 7004, b"n5"]],
        [7, 7, [None, 7001, b"n2", [b"ip", b"10.0.0.2"]]],
    ]
    found = read_view(slots, b"cluster_state:ok\r\ncluster_my_epoch:12\r\n", b"n2", "fe80::1")
    assert found == View(
        "n2", 12, ((0, 5460, "n1"), (7, 7, "n2"), (5461, SLOTS - 1, "n2")),
        {"n1": "10.0.0.1:7000", "n4": "10.0.0.4:7003", "n2": "[fe80::1]:7001", "n5": "[fe80::1]:7004"},
    )  # fmt: skip
    assert found.owners() == {"10.0.0.1:7000", "[fe80::1]:7001"}


def test_a_user_who_may_not_ask_who_answers_gets_a_map_too() -> None:
    found = read_view([[0, 9, [b"h", 1, b"n1"]]], Exception("NOPERM"), Exception("NOPERM"), "h")
    assert merge([found]).owners[9] == "h:1"


@pytest.mark.parametrize(
    ("reply", "told"),
    [("MOVED 3999 127.0.0.1:6381", (3999, "127.0.0.1:6381")), ("ASK 7 :6381", (7, "here:6381")),
     ("MOVED 7 ?:6381", (7, "here:6381")), ("MOVED 7 ::1:6381", (7, "[::1]:6381"))],
)  # fmt: skip
def test_redirections_are_read(reply: str, told: tuple[int, str]) -> None:
    assert redirect(reply, "here") == told
    assert host_of(told[1]) in ("127.0.0.1", "here", "::1")


def test_one_moved_slot_is_one_change() -> None:
    before = merge([view("a", 1, (0, SLOTS - 1, "a"))])
    after = before.moved(42, "b:1")
    assert before.changes(after) == 1 and after.nodes == {"a:1", "b:1"} and before.nodes == {"a:1"}
    assert not Slots().nodes
