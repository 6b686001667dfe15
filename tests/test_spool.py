"""The spool on disk: what comes back after cuts, flipped bits, full disks, and what it refuses."""

import errno
import os
import random
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from sinks import dose

from relay.errors import SpoolError, SpoolUnusable
from relay.outbox import NOTHING, Position, Topic
from relay.spool import Spool
from relay.spool.layout import BATCH, FILE_HEAD_SIZE, HEAD, PACKED, TOPIC, file_head, parse


def spool_in(folder: Path, events: list[tuple[str, dict[str, Any]]] | None = None, **options: Any) -> Spool:
    settings: dict[str, Any] = {
        "segment_bytes": 1 << 20,
        "retention_secs": 600.0,
        "bytes_max": 1 << 30,
        "fsync": "never",
    }
    told = events if events is not None else []
    return Spool(folder, **{**settings, **options}, on_event=lambda kind, fields: told.append((kind, fields)))


def put(spool: Spool, topic: Topic, first: int, count: int = 1, ms: int = 1_000) -> None:
    seqs = range(first, first + count)
    topic.seq = seqs[-1]
    ids, bodies = [f"{ms}-{seq}" for seq in seqs], [body(topic.name, seq) for seq in seqs]
    assert spool.write([topic], [count], ids, bodies)


def body(name: str, seq: int) -> bytes:
    return b'{"type":"trade","topic":"%b","seq":%d,"src_seq":%d}' % (name.encode(), seq, seq + 100)


def read_all(spool: Spool, name: str, after: str = NOTHING) -> list[tuple[str, bytes]]:
    position: Position | None = spool.find(name, after)
    found: list[tuple[str, bytes]] = []
    ended = position is None
    while not ended:
        assert position is not None
        entries, position, ended = spool.read(position, (name,))
        for past in entries:
            found += zip(past.ids, past.bodies, strict=True)
    return found


def test_what_is_of_no_use_is_not_read_but_for_the_segment_that_ends_it(tmp_path: Path) -> None:
    """A heal from nothing needs the newest entries alone: it must not read gigabytes for them."""
    spool = spool_in(tmp_path / "s", segment_bytes=4096)
    spool.open()
    a, b = Topic("trades.A", "trades", "p", 1), Topic("quotes.B", "quotes", "q", 1)
    put(spool, b, 1, 1)
    for seq in range(1, 301, 10):
        put(spool, a, seq, 10, ms=1000 + seq)
    place = spool.find("trades.A", NOTHING, lambda entry_id: int(entry_id.partition("-")[2]) <= 250)
    assert place is not None
    firsts = [segment.last["trades.A"] for segment in spool._segments if segment.number >= place.segment]
    assert len(spool._segments) > 4 and int(firsts[0].partition("-")[2]) <= 250 < int(firsts[1].partition("-")[2])
    found = spool.read(place, ("trades.A",))[0]
    assert int(found[0].ids[0].partition("-")[2]) <= 250
    # nothing is beyond: from the first entry on; all is: the last segment's
    assert spool.find("trades.A", NOTHING, lambda entry_id: False) == spool.find("trades.A", NOTHING)
    last = spool.find("trades.A", NOTHING, lambda entry_id: True)
    assert last is not None and last.segment == max(segment.number for segment in spool._segments)
    spool.close()


def test_next_run_finds_what_the_last_one_accepted(tmp_path: Path) -> None:
    first = spool_in(tmp_path / "s", segment_bytes=4096)
    first.open()
    a, b = Topic("trades.A", "trades", "p", 1), Topic("quotes.B", "quotes", "q", 1)
    a.contiguous = True
    for seq in range(1, 201, 10):
        put(first, a, seq, 10, ms=1000 + seq)
        put(first, b, seq, 1, ms=1000 + seq)
    first.acknowledge({"trades.A": "1011-12"})
    first.close()

    second = spool_in(tmp_path / "s", segment_bytes=4096)
    found = second.open()
    assert found.last == {"trades.A": "1191-200", "quotes.B": "1191-191"}
    assert found.marks == {"trades.A": "1011-12"}
    assert found.bodies["trades.A"] == body("trades.A", 200)
    assert (found.about["trades.A"].kind, found.about["trades.A"].contiguous) == ("trades", True)
    assert (found.damaged, found.torn, second.newest_ms) == (0, False, 1191)
    assert len(list((tmp_path / "s").glob("*.spool"))) > 3
    entries = read_all(second, "trades.A")
    assert entries == [(f"{1000 + (seq - 1) // 10 * 10 + 1}-{seq}", body("trades.A", seq)) for seq in range(1, 201)]
    put(second, a, 1, ms=2000)
    assert read_all(second, "trades.A")[-1] == ("2000-1", body("trades.A", 1))
    second.close()


def test_full_segments_are_known_without_reading_them(tmp_path: Path) -> None:
    first = spool_in(tmp_path / "s", segment_bytes=4096)
    first.open()
    topic = Topic("trades.A", "trades", "p", 1)
    for seq in range(1, 201, 10):
        put(first, topic, seq, 10)
    first.acknowledge({"trades.A": "1000-150"})
    assert first.write([topic], [1], ["1000-201"], [b'{"type":"status","event":"stale"}'])
    first.close()
    indexed = spool_in(tmp_path / "s")
    by_index = indexed.open()
    indexed.close()
    for index in (tmp_path / "s").glob("*.index"):
        index.write_bytes(index.read_bytes().replace(b"trades", b"quotes"))  # its CRC is wrong now
    read = spool_in(tmp_path / "s")
    by_reading = read.open()
    read.close()
    assert by_index.last == by_reading.last == {"trades.A": "1000-201"}
    assert by_index.bodies == by_reading.bodies == {"trades.A": body("trades.A", 200)}
    assert by_index.marks == by_reading.marks and by_index.about == by_reading.about


def test_one_process_has_it_and_the_folder_says_for_whom(tmp_path: Path) -> None:
    first = spool_in(tmp_path / "s", target={"redis": "redis://a:1/0"})
    first.open()
    with pytest.raises(SpoolError, match="in use by another relay process"):
        spool_in(tmp_path / "s").open()
    first.close()
    assert "redis://a:1/0" in (tmp_path / "s" / "about.json").read_text()
    spool_in(tmp_path / "s").open()


def test_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    path = folder / "000000000001.spool"
    path.write_bytes(file_head(9) + b"something new")
    with pytest.raises(SpoolError, match="of version 9, this relay reads up to 3.*newer relay.*move") as caught:
        spool_in(folder).open()
    assert not isinstance(caught.value, SpoolUnusable)
    assert path.read_bytes() == file_head(9) + b"something new"


def test_folder_that_cannot_be_written_is_no_spool(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolUnusable, match="no spool in"):
        spool_in(tmp_path / "file" / "s").open()


Ends = list[tuple[int, list[tuple[str, bytes]]]]
"""Where each batch ends, with its entries."""


def whole(tmp_path: Path, size: int, count: int = 1) -> tuple[bytes, Ends]:
    """A segment of batches of some entries each: many are packed."""
    spool = spool_in(tmp_path / "whole", pack=True)
    spool.open()
    topic = Topic("trades.A", "trades", "p", 1)
    ends: Ends = []
    first = 1
    while spool.bytes < size:
        put(spool, topic, first, count, ms=1000 + first)
        entries = [(f"{1000 + first}-{seq}", body(topic.name, seq)) for seq in range(first, first + count)]
        ends.append((spool.bytes, entries))
        first += count
    spool.close()
    data = (tmp_path / "whole" / "000000000001.spool").read_bytes()
    assert len(parse(data, FILE_HEAD_SIZE, final=True).records) == len(ends) + 1
    kinds = {found.kind for found in parse(data, FILE_HEAD_SIZE, final=True).records}
    assert kinds == {TOPIC, PACKED if count > 50 else BATCH}
    return data, ends


def entries_of(ends: Ends) -> list[tuple[str, bytes]]:
    return [entry for _, entries in ends for entry in entries]


def reopened(folder: Path, data: bytes) -> list[tuple[str, bytes]]:
    """What a start makes of a segment, twice: as its newest, then as an older one."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.spool"):
        old.unlink()
    (folder / "000000000001.spool").write_bytes(data)
    spool = spool_in(folder)
    found = spool.open()
    entries = read_all(spool, "trades.A")
    assert set(found.last) <= {"trades.A", "trades.B"}
    spool.close()
    return entries


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.fault)])
@pytest.mark.parametrize("count", [1, 60])
def test_cut_at_any_byte_gives_every_whole_record(tmp_path: Path, step: int, count: int) -> None:
    data, ends = whole(tmp_path, 4096 if dose(1) == 1 else 65_536, count)
    for cut in range(0, len(data), step):
        entries = reopened(tmp_path / "cut", data[:cut])
        assert entries == entries_of([one for one in ends if one[0] <= cut]), cut


@pytest.mark.parametrize("flips", [150, pytest.param(1000, marks=pytest.mark.fault)])
@pytest.mark.parametrize("count", [1, 60])
def test_flipped_bits_cost_their_record_alone(tmp_path: Path, count: int, flips: int) -> None:
    data, ends = whole(tmp_path, 4096, count)
    begins = [0, *[end for end, _ in ends]]
    rng = random.Random(7)
    for _ in range(dose(flips)):
        bit = rng.randrange(len(data) * 8)
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        entries = reopened(tmp_path / "flip", bytes(damaged))
        touched = {i for i in range(len(ends)) if begins[i] <= bit // 8 < begins[i + 1]}
        expected = entries_of([one for i, one in enumerate(ends) if i not in touched])
        # the first entry stands behind the segment's head and its topic's record: damage there costs no entry
        assert entries in (expected, entries_of(ends)), bit
        if bit // 8 >= begins[1]:
            assert entries == expected, bit


def test_spool_of_the_version_before_is_read(tmp_path: Path) -> None:
    """Its records name another version, which is part of their CRC; there was no packing."""
    data, ends = whole(tmp_path, 2048)
    old = file_head(2)
    for found in parse(data, FILE_HEAD_SIZE, final=True).records:
        crc = crc32(found.payload, crc32(bytes([2, found.kind])))
        old += HEAD.pack(b"\xf5\xfa", 2, found.kind, len(found.payload), crc) + found.payload
    assert reopened(tmp_path / "old", old) == entries_of(ends)


def test_damage_costs_the_batch_that_it_stands_in(tmp_path: Path) -> None:
    spool = spool_in(tmp_path / "whole")
    spool.open()
    a, b = Topic("trades.A", "trades", "p", 1), Topic("trades.B", "trades", "p", 1)
    begins = []
    for first in range(1, 31, 10):
        begins.append(spool.bytes)
        ids = [f"1000-{seq}" for seq in range(first, first + 10)]
        bodies = [body("x", seq) for seq in range(first, first + 10)]
        assert spool.write([a, b], [10, 3], ids + ids[:3], bodies + bodies[:3])
    spool.close()
    data = bytearray((tmp_path / "whole" / "000000000001.spool").read_bytes())
    data[begins[2] - 30] ^= 1
    seqs = [int(entry_id.split("-")[1]) for entry_id, _ in reopened(tmp_path / "flip", bytes(data))]
    assert seqs == [*range(1, 11), *range(21, 31)]


def test_damage_in_the_middle_is_said(tmp_path: Path) -> None:
    data, ends = whole(tmp_path, 4096)
    events: list[tuple[str, dict[str, Any]]] = []
    folder = tmp_path / "s"
    folder.mkdir()
    middle = ends[3][0] + 40
    (folder / "000000000001.spool").write_bytes(data[:middle] + b"\xf5\xfa\0\0" + data[middle + 4 :])
    spool = spool_in(folder, events)
    found = spool.open()
    assert (found.damaged, found.torn) == (1, False)
    assert events[0][0] == "spool_damaged"
    assert [entry_id for entry_id, _ in read_all(spool, "trades.A")] == [
        entry_id for entry_id, _ in entries_of(ends[:4] + ends[5:])
    ]
    spool.close()


def test_old_segments_go_when_redis_has_them_and_not_before(tmp_path: Path) -> None:
    spool = spool_in(tmp_path / "s", segment_bytes=4096, retention_secs=10.0)
    spool.open()
    topic = Topic("trades.A", "trades", "p", 1)
    confirmed = NOTHING
    spool.confirmed = lambda name: (confirmed, False)
    for seq in range(1, 400, 10):
        put(spool, topic, seq, 10, ms=1_000)
    before = spool.bytes
    spool.tidy(1_000_000)
    assert spool.bytes == before, "Redis lacks all of it"
    confirmed = "1000-400"
    spool.tidy(5_000)
    assert spool.bytes == before, "too young"
    spool.tidy(1_000_000)
    assert spool.bytes <= 4096 + 1000
    spool.close()


def test_full_spool_lets_go_of_what_redis_refuses_and_of_nothing_else(tmp_path: Path) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    spool = spool_in(tmp_path / "s", events, segment_bytes=4096, bytes_max=65_536)
    spool.open()
    topic = Topic("trades.A", "trades", "p", 1)
    refused = False
    spool.confirmed = lambda name: (NOTHING, refused)
    for seq in range(1, 2000, 10):
        put(spool, topic, seq, 10)
    assert spool.full and spool.brimful and spool.dropped == 0
    assert [kind for kind, _ in events] == ["spool_full"]
    refused = True
    assert spool.make_room() and not spool.full and spool.dropped > 0
    spool.close()


def test_disk_that_takes_nothing_is_said_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    spool = spool_in(tmp_path / "s", events)
    spool.open()
    topic = Topic("trades.A", "trades", "p", 1)
    put(spool, topic, 1, 3)
    real = os.write
    room = 30

    def write(fd: int, data: Any) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        took, room = min(room, len(data)), max(0, room - len(data))
        return real(fd, data[:took])

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "writev", lambda fd, parts: write(fd, b"".join(parts)))
    fourth = ([topic], [1], ["1000-4"], [body("trades.A", 4)])
    assert not spool.write(*fourth) and not spool.ok and spool.resting
    assert events[-1] == ("spool_degraded", {"why": "No space left on device", "folder": str(tmp_path / "s")})
    assert [entry_id for entry_id, _ in read_all(spool, "trades.A")] == ["1000-1", "1000-2", "1000-3"]
    monkeypatch.undo()
    monkeypatch.setattr(spool, "_retry_at", 0.0)
    assert not spool.resting and spool.write(*fourth) and spool.ok and events[-1][0] == "spool_recovered"
    assert [entry_id for entry_id, _ in read_all(spool, "trades.A")][-1] == "1000-4", "half a record was cut off"
    spool.close()


def test_always_means_on_disk_before_anything_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    write, sync = os.writev, os.fdatasync
    monkeypatch.setattr(os, "writev", lambda fd, parts: calls.append("write") or write(fd, parts))
    monkeypatch.setattr(os, "fdatasync", lambda fd: calls.append("sync") or sync(fd))
    topic = Topic("trades.A", "trades", "p", 1)
    for fsync, expected in (("always", ["write", "sync"]), ("interval", ["write"]), ("never", ["write"])):
        spool = spool_in(tmp_path / fsync, fsync=fsync)
        spool.open()
        put(spool, topic, 1)
        calls.clear()
        put(spool, topic, 2)
        assert calls == expected, fsync
        spool.close()
        assert ("sync" in calls) == (fsync != "never"), fsync


def test_disk_that_cannot_be_made_safe_is_no_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = spool_in(tmp_path / "s", fsync="always")
    spool.open()
    topic = Topic("trades.A", "trades", "p", 1)
    put(spool, topic, 1)

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    assert not spool.write([topic], [1], ["1000-2"], [body("trades.A", 2)]) and spool.why == "Input/output error"
    monkeypatch.undo()
    assert [entry_id for entry_id, _ in read_all(spool, "trades.A")] == ["1000-1"], "what was not safe was taken back"
    spool.close()


def test_spool_for_another_redis_is_mentioned(tmp_path: Path) -> None:
    first = spool_in(tmp_path / "relay-a")
    first.open()
    put(first, Topic("t", "trades", "p", 1), 1)
    first.close()
    events: list[tuple[str, dict[str, Any]]] = []
    second = spool_in(tmp_path / "relay-b", events)
    assert second.open().last == {}
    assert events == [("spool_elsewhere", {"folders": ["relay-a"]})]
    second.close()
