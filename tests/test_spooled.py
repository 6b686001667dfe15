"""The outbox with a spool behind it: overflow and return, order, holes, blocked topics, restarts, short memory."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_spool import read_all, spool_in

from relay.model import Status
from relay.outbox import NOTHING, Topic, order
from relay.spool import Spool
from relay.spooled import SpooledOutbox

RUN = 1_000


class Scene:
    """An outbox over a real spool; `serve` plays the sink."""

    def __init__(self, folder: Path, bytes_max: int = 100_000, topic_bytes_max: int = 10_000, **options: Any) -> None:
        self.spool: Spool = spool_in(folder, **options)
        self.found = self.spool.open()
        self.outbox = SpooledOutbox(bytes_max, topic_bytes_max, self.spool, RUN)
        self.holes: list[tuple[str, Status]] = []
        self.outbox.hole = lambda topic, status: self.holes.append((topic.name, status))
        self.sent: dict[str, list[tuple[str, bytes]]] = {}
        topics = self.outbox.topics
        self.spool.confirmed = lambda name: (topics[name].last, bool(topics[name].blocked))

    def topic(self, name: str = "trades.A", last: str = NOTHING) -> Topic:
        topic = self.outbox.topic(name, "trades", "p")
        topic.contiguous = True
        topic.last = topic.acked = last
        return topic

    def put(self, topic: Topic, count: int, ms: int = RUN) -> None:
        for _ in range(count):
            topic.seq += 1
            body = b'{"type":"trade","provider":"p","run":%d,"seq":%d,"src_seq":%d,"pad":"%b"}'
            self.outbox.add(topic, f"{ms}-{topic.seq}", body % (ms, topic.seq, topic.seq + 500, b"x" * 100))
        self.outbox.flush()

    def serve(self, limit: int = 10_000) -> None:
        """Send all that can be sent, checking bounds."""
        for _ in range(limit):
            self.outbox.flush()
            more = self.outbox.refill()
            batch = self.outbox.take(50, 100_000)
            for topic, count in batch:
                self.sent.setdefault(topic.name, []).extend(zip(topic.ids[:count], topic.data[:count], strict=True))
                last = topic.ids[count - 1]
                self.outbox.done(topic, count)
                topic.last = topic.acked = last
            if not batch and not more:
                return
        raise AssertionError("it never ends")

    def seqs(self, name: str = "trades.A") -> list[int]:
        ids = [entry_id for entry_id, _ in self.sent.get(name, [])]
        assert ids == sorted(ids, key=order)
        return [int(entry_id.split("-")[1]) for entry_id in ids]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "s", segment_bytes=50_000)


def test_what_memory_cannot_hold_comes_back_in_order(scene: Scene) -> None:
    topics = [scene.topic(f"t{i}") for i in range(5)]
    for _ in range(100):
        for topic in topics:
            scene.put(topic, 10)
    assert scene.outbox.size < 100_000 + 5 * 500, "memory is bounded"
    assert not scene.outbox.full, "sockets go on"
    assert scene.outbox.entries() == 5000
    scene.serve()
    for topic in topics:
        assert scene.seqs(topic.name) == list(range(1, 1001))
        assert not topic.spilled and topic.behind == 0
    assert scene.outbox.entries() == 0 and not scene.outbox.waiting and scene.holes == []


def test_new_entries_stay_behind_what_is_read_back(scene: Scene) -> None:
    topic = scene.topic()
    scene.put(topic, 500)
    for _ in range(400):
        scene.put(topic, 7)
        scene.outbox.refill()
        for one, count in scene.outbox.take(11, 100_000):
            scene.sent.setdefault(one.name, []).extend(zip(one.ids[:count], one.data[:count], strict=True))
            one.acked = one.last = one.ids[count - 1]
            scene.outbox.done(one, count)
    scene.serve()
    assert scene.seqs() == list(range(1, 500 + 2800 + 1)) and scene.holes == []


def test_refused_topic_costs_no_memory_and_comes_back_whole(scene: Scene) -> None:
    bad, good = scene.topic("bad"), scene.topic("good")
    scene.put(bad, 20)
    scene.outbox.block(bad, "WRONGTYPE")
    for _ in range(300):
        scene.put(bad, 10)
        scene.put(good, 1)
        scene.serve()
    assert len(scene.seqs("good")) == 300 and not bad.full and not scene.outbox.full
    assert bad.size < 11_000
    scene.outbox.unblock(bad)
    scene.serve()
    assert scene.seqs("bad") == list(range(1, 3021))


def test_a_reply_that_was_lost_is_known_although_memory_was_given_up(scene: Scene) -> None:
    topic = scene.topic()
    scene.put(topic, 50)
    scene.outbox.block(topic, "NOPERM")  # a call with 1 to 30 was in flight when the connection broke
    assert not topic.ids
    assert not scene.outbox.advance(topic, "999-30") and scene.outbox.advance(topic, "1000-30")
    topic.last = topic.acked = "1000-30"
    scene.outbox.unblock(topic)
    scene.serve()
    assert scene.seqs() == list(range(31, 51))


def test_next_run_sends_what_redis_lacks_before_anything_new(tmp_path: Path) -> None:
    first = Scene(tmp_path / "s", segment_bytes=5_000)
    first.put(first.topic(), 100)
    first.spool.close()
    again = Scene(tmp_path / "s", segment_bytes=5_000)
    topic = again.outbox.topic("trades.A", "trades", "p")
    again.outbox.recover(topic, again.found.last["trades.A"], "", again.found.bodies["trades.A"])
    assert (topic.last_id, json.loads(topic.before or b"")["src_seq"]) == ("1000-100", 600)
    again.put(topic, 5, ms=2_000)
    assert not topic.ids, "the new wait behind the old"
    topic.last = topic.acked = "1000-60"
    again.outbox.begin(topic)
    again.serve()
    assert again.seqs() == [*range(61, 101), 1, 2, 3, 4, 5]


def test_hole_in_the_spool_becomes_a_gap_with_numbers(tmp_path: Path) -> None:
    first = Scene(tmp_path / "s", segment_bytes=5_000)
    first.put(first.topic(), 20)
    for _ in range(8):
        first.put(first.outbox.topics["trades.A"], 10)
    first.spool.close()
    segments = sorted((tmp_path / "s").glob("*.spool"))
    assert len(segments) > 3
    segments[1].unlink()
    again = Scene(tmp_path / "s", segment_bytes=5_000)
    topic = again.outbox.topic("trades.A", "trades", "p")
    topic.contiguous = True
    again.outbox.recover(topic, again.found.last["trades.A"], "", None)
    topic.last = topic.acked = NOTHING
    again.outbox.begin(topic)
    again.serve()
    seqs = again.seqs()
    ((name, status),) = again.holes
    at = next(i for i, (_, body) in enumerate(again.sent["trades.A"]) if b'"gap"' in body)
    gap = json.loads(again.sent["trades.A"][at][1])
    assert (name, status.reason, gap["seq"]) == ("trades.A", "beyond_retention", seqs[at])
    assert gap["first_missing"] == seqs[at - 1] + 501 and gap["last_missing"] == seqs[at + 1] + 499
    assert seqs[at + 1] == seqs[at] + 1 and gap["missing"] == gap["last_missing"] - gap["first_missing"] + 1


def test_short_memory_is_given_up(scene: Scene) -> None:
    topics = [scene.topic(f"t{i}") for i in range(1)]
    scene.outbox.topic_bytes_max = 1_000_000
    topics[0].limit = 1_000_000
    scene.put(topics[0], 300)
    assert scene.outbox.size > 70_000
    scene.outbox.tighten(True)
    scene.outbox.refill()
    assert scene.outbox.size < 70_000 or topics[0].spilled
    scene.outbox.tighten(False)
    scene.serve()
    assert scene.seqs("t0") == list(range(1, 301))


def test_disk_and_memory_full_stop_the_feeds(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = scene.topic()
    monkeypatch.setattr(scene.spool, "ok", False)
    monkeypatch.setattr(scene.spool, "_retry_at", float("inf"))
    scene.put(topic, 1000)
    assert scene.outbox.full
    monkeypatch.setattr(scene.spool, "_retry_at", 0.0)
    scene.serve()
    assert scene.seqs() == list(range(1, 1001)) and not scene.outbox.full


def test_full_disk_costs_nothing_that_came_meanwhile(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    spilled, held = scene.topic("spilled"), scene.topic("held")
    scene.put(spilled, 200)
    assert spilled.spilled
    monkeypatch.setattr(scene.spool, "ok", False)
    monkeypatch.setattr(scene.spool, "_retry_at", float("inf"))
    scene.put(held, 3)
    assert held.fresh == 3
    scene.serve()  # Redis takes both, from memory too, and `spilled` has all in memory again
    assert not spilled.spilled
    scene.put(spilled, 5)
    scene.put(held, 4)
    scene.put(spilled, 1)
    assert (held.fresh, len(held.ids)) == (7, 4), "three of the fresh ones have gone to Redis"
    monkeypatch.setattr(scene.spool, "_retry_at", 0.0)
    scene.outbox.flush()
    assert scene.spool.ok and (held.fresh, spilled.fresh) == (0, 0)
    again = Scene(scene.spool.folder.with_name("copy"))
    for path in scene.spool.folder.glob("*.spool"):
        (again.spool.folder / path.name).write_bytes(path.read_bytes())
    again.spool.close()
    assert [entry_id for entry_id, _ in read_all(reopened_spool(again.spool.folder), "held")] == [
        f"1000-{seq}" for seq in range(4, 8)
    ]
    scene.serve()
    assert scene.seqs("held") == list(range(1, 8)) and scene.seqs("spilled") == list(range(1, 207))


def reopened_spool(folder: Path) -> Spool:
    spool = spool_in(folder)
    spool.open()
    return spool
