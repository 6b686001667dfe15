"""The files of a journal: what is written is read again, what is damaged is found and costs little, disks may fail."""

import errno
import io
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from relay import records
from relay.__main__ import main
from relay.config import JournalConfig
from relay.errors import JournalError
from relay.journal import Batch, Block, Damage, Journal, overview, read_blocks, read_records, runs_of, writer
from relay.journal.blocks import pack
from relay.providers.base import Frame, Reply
from relay.records import Header, Lost, line

NOW = 1_772_359_200_123_456_789
HEADER = Header(format=records.FORMAT, relay="t", run=1, file=1, version="0")


def header(number: int) -> bytes:
    return line("header", NOW, "", msgspec.structs.replace(HEADER, file=number))


def frame(number: int, size: int = 100) -> bytes:
    text = json.dumps({"number": number, "noise": random.Random(number).randbytes(size // 2).hex()})
    return records.encode_lines([records.received("coinapi/1", Frame(NOW + number, text.encode()))])


def file_of(blocks: int, lines: int = 5) -> tuple[bytes, list[bytes]]:
    """The bytes of a journal file, and the lines of each block."""
    texts = [header(1), *(b"".join(frame(i * lines + k) for k in range(lines)) for i in range(blocks))]
    counts = [text.count(b"\n") for text in texts]
    packed = [pack(i, t, n, NOW, NOW + 1000) for i, (t, n) in enumerate(zip(texts, counts, strict=True), 1)]
    return b"".join(packed), texts


def read(data: bytes) -> tuple[list[bytes], list[Damage]]:
    found = list(read_blocks(io.BytesIO(data)))
    return [b.lines for b in found if isinstance(b, Block)], [b for b in found if isinstance(b, Damage)]


class Recording:
    """A journal whose records are numbers."""

    def __init__(self, folder: Path, *, backlog_bytes: int = 32 << 20, **settings: Any) -> None:
        self.folder = folder
        self.journal = Journal(
            folder,
            "t",
            JournalConfig(**settings),
            lost_line=lambda count, from_ns, why: line("lost", from_ns, "", Lost(count, from_ns, why)),
            backlog_bytes=backlog_bytes,
            retry_secs=0.01,
        )

    def __enter__(self) -> "Recording":
        self.journal.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()

    def put(self, *numbers: int, begin: bool = False, size: int = 100) -> bool:
        lines = b"".join(frame(number, size) for number in numbers)
        return self.journal.put(Batch(lines, len(numbers), NOW, NOW, header if begin else None))

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < end, (self.journal.state, self.journal.why)
            time.sleep(0.002)

    def read(self) -> list[Any]:
        """What all files hold, headers aside: numbers of frames, and ("lost", n)."""
        out: list[Any] = []
        for run in runs_of([self.folder], lambda path, text: out.append((path.name, text))):
            for file in run.files:
                for record in read_records(file.path, lambda path, text: out.append((path.name, text))):
                    if record.do == "in":
                        out.append(json.loads(records.frame_of(record, 0).data)["number"])
                    elif record.do == "lost":
                        out.append(("lost", records.data_of(record, Lost).records))
        return out


# -- records -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "binary"),
    [(b'{"a":"\xc3\xa9\\u0000\\n"}', False), (b"", False), (b"\xff\xfe", False), (b"\x00\x01", True), (b"text", True)],
)
def test_frames_come_back_as_they_were(data: bytes, binary: bool) -> None:
    (record,) = records.decode_lines(records.encode_lines([records.received('a/"1"', Frame(NOW, data, binary))]))
    assert record.do == "in" and record.conn == 'a/"1"' and record.t == NOW
    assert records.frame_of(record, NOW) == Frame(NOW, data, binary)


HOSTILE = b'{"a":1},"do":"closed","t":5,"b":{}'
"""Begins and ends as an object, and is none."""


@pytest.mark.parametrize(
    ("texts", "binary", "as_they_came"),
    [
        ([b'{"a":1}', b'{ "b" : "1.10" }'], False, True),
        ([b'{"a":1}', b"pong"], False, False),
        ([b'{"a":1}', b"[1]"], False, False),
        ([b"[1]", b'{"a":1}'], False, False),
        ([b'{"a":1}', b'{"b":\n2}'], False, False),
        ([b'{"a":1}', b'{"b":2}\n{"c":3}'], False, False),
        ([b'{"a":1}', '{"b":"é"}'.encode()], False, False),
        ([b'{"a":1}', b'{"b":"\xff"}'], False, False),
        ([b'{"a":1}', b""], False, False),
        ([b""], False, False),
        ([b'{"a":1}'], True, False),
        ([b'{"a":1}', HOSTILE, b"{abc}", b'{"half":{"b":1}'], False, True),
    ],
)
def test_frames_of_a_batch_come_back_as_they_were(texts: list[bytes], binary: bool, as_they_came: bool) -> None:
    frames = [Frame(NOW + number, data, binary) for number, data in enumerate(texts)]
    if as_they_came:
        assert records.frames("a/1", frames, lambda data: texts[0] in data, sound=True) is None, "it holds a secret"
    lines = records.frames('a/"1\\"', frames, lambda data: False, sound=True) or b""
    assert (b',"json":' in lines) == as_they_came
    if HOSTILE not in texts:  # whatever it is, each line is JSON
        assert len([json.loads(one) for one in lines.splitlines()]) == len(texts)
    found = records.decode_lines(lines)
    assert [(record.do, record.conn) for record in found] == [("in", 'a/"1\\"')] * len(texts)
    assert [records.frame_of(record, record.t) for record in found] == frames
    # and what `relay journal cat` makes of them
    plain = [json.loads(records.plain(one)) for one in lines.splitlines()]
    assert [one["frame"].encode() for one in plain if "frame" in one] == [
        t for t in texts if t.isascii() or b"\xff" not in t
    ]


def test_rejected_frames_stand_as_texts() -> None:
    """They may be anything; as JSON they would make the file unreadable for jq."""
    frames = [Frame(NOW, data, False) for data in (b'{"a":1}', b"{abc}")]
    assert records.frames("a/1", frames, lambda data: b"{abc" in data, sound=False) is None, "it holds a secret"
    lines = records.frames("a/1", frames, lambda data: False, sound=False) or b""
    assert [json.loads(one)["frame"] for one in lines.splitlines()] == ['{"a":1}', "{abc}"]
    assert [records.frame_of(record, NOW) for record in records.decode_lines(lines)] == frames


@pytest.mark.parametrize("body", [b"", b'{"a":1}', b"\xff\x00"])
def test_replies_come_back_as_they_were(body: bytes) -> None:
    reply = Reply("tag", 200, body, {"retry-after": "5"}, "")
    (record,) = records.decode_lines(line("reply", NOW, "a/1", records.reply_data(reply)))
    assert records.reply_of(record) == reply


@pytest.mark.parametrize("now", [0, 1, 999_999_999, NOW, 2**63 - 1])
def test_times_keep_every_nanosecond(now: int) -> None:
    (record,) = records.decode_lines(line("watch", now))
    assert record.t == now


# -- damage ------------------------------------------------------------------------------------------------------------


def test_blocks_come_back_as_they_were() -> None:
    data, texts = file_of(3)
    assert read(data) == (texts, [])


def test_tools_of_others_read_it(tmp_path: Path) -> None:
    if which("zstd") is None:
        pytest.skip("zstd is not installed")
    data, texts = file_of(3)
    (tmp_path / "a.jsonl.zst").write_bytes(data)
    out = subprocess.run(["zstd", "-dc", tmp_path / "a.jsonl.zst"], capture_output=True, check=True).stdout
    assert out == b"".join(texts)


@pytest.mark.fault
def test_cut_at_any_byte_costs_the_last_block_alone() -> None:
    data, texts = file_of(16, 2)
    starts = [block.start for block in read_blocks(io.BytesIO(data)) if isinstance(block, Block)]
    for cut in range(max(0, len(data) - 4096), len(data)):
        found, damages = read(data[:cut])
        whole = sum(1 for start in [*starts[1:], len(data)] if start <= cut)
        assert found == texts[:whole]
        assert bool(damages) == (cut not in starts)
        assert all(damage.torn and damage.end == cut for damage in damages)


@pytest.mark.fault
def test_flipped_bits_cost_the_block_that_was_hit_and_are_told() -> None:
    data, texts = file_of(40)
    spans = [(b.start, b.start + b.packed) for b in read_blocks(io.BytesIO(data)) if isinstance(b, Block)]
    dice = random.Random(4)
    for _ in range(1000):
        bit = dice.randrange(len(data) * 8)
        bent = bytearray(data)
        bent[bit // 8] ^= 1 << bit % 8
        hit = next(i for i, (start, end) in enumerate(spans) if start <= bit // 8 < end)
        found, damages = read(bytes(bent))
        assert found == texts[:hit] + texts[hit + 1 :], bit
        assert len(damages) == 1 and damages[0].start <= bit // 8 < damages[0].end, bit
        assert damages[0].blocks == 1


def test_many_flips_and_noise_never_give_a_wrong_record() -> None:
    data, texts = file_of(10)
    dice = random.Random(5)
    for _ in range(300):
        bent = bytearray(data)
        for _ in range(dice.randrange(1, 30)):
            bent[dice.randrange(len(bent))] = dice.randrange(256)
        at = dice.randrange(len(bent))
        bent[at:at] = dice.randbytes(dice.randrange(200))
        found, damages = read(bytes(bent))
        assert set(found) <= set(texts) and [t for t in texts if t in found] == found
        assert damages
    assert read(dice.randbytes(5000))[0] == []


def test_a_block_cut_out_is_told() -> None:
    data, texts = file_of(4)
    second = next(b for b in read_blocks(io.BytesIO(data)) if isinstance(b, Block) and b.number == 2)
    found, damages = read(data[: second.start] + data[second.start + second.packed :])
    assert found == [texts[0], *texts[2:]]
    assert len(damages) == 1 and damages[0].blocks == 1 and "missing" in damages[0].why


def test_damage_is_told_with_the_records_it_costs(tmp_path: Path) -> None:
    data, _ = file_of(3)
    third = next(b for b in read_blocks(io.BytesIO(data)) if isinstance(b, Block) and b.number == 3)
    bent = bytearray(data)
    bent[third.start + third.packed - 3] ^= 8
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(bent)
    told: list[str] = []
    assert len(list(read_records(path, lambda path, text: told.append(text)))) == 1 + 5 + 5
    assert told == [
        f"bytes {third.start} to {third.start + third.packed}: block 3: its checksum is wrong, 5 records lost"
    ]
    result = CliRunner().invoke(main, ["journal", "verify", str(path)])
    assert result.exit_code == 1 and "damaged, 11 records" in result.output and told[0] in result.output
    path.write_bytes(data[:-3])
    result = CliRunner().invoke(main, ["journal", "verify", str(path)])
    assert result.exit_code == 0 and "torn end, 11 records" in result.output
    path.write_bytes(data)
    result = CliRunner().invoke(main, ["journal", "verify", "--json", str(path)])
    assert result.exit_code == 0 and json.loads(result.output)["damages"] == []


def test_a_file_without_a_header_is_left_out(tmp_path: Path) -> None:
    data, _ = file_of(2)
    (tmp_path / "t.000001.jsonl.zst").write_bytes(data)
    (tmp_path / "t.000002.jsonl.zst").write_bytes(b"")
    (tmp_path / "t.000003.jsonl.zst").write_bytes(b"not zstd")
    told: list[str] = []
    (run,) = runs_of([tmp_path], lambda path, text: told.append(path.name))
    assert [file.path.name for file in run.files] == ["t.000001.jsonl.zst"]
    assert told == ["t.000002.jsonl.zst", "t.000003.jsonl.zst"]
    with pytest.raises(JournalError, match="no header"):
        runs_of([tmp_path / "t.000003.jsonl.zst"], lambda path, text: None)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    later = line("header", NOW, "", msgspec.structs.replace(HEADER, format=records.FORMAT + 1, version="9"))
    (tmp_path / "a.jsonl.zst").write_bytes(pack(1, later, 1, NOW, NOW))
    with pytest.raises(JournalError, match=f"version 9; this one reads {records.FORMAT}"):
        runs_of([tmp_path / "a.jsonl.zst"], lambda path, text: None)


# -- writing -----------------------------------------------------------------------------------------------------------


def test_what_is_handed_over_is_read_again_in_order(tmp_path: Path) -> None:
    with Recording(tmp_path / "j") as recording:
        recording.put(1, 2, 3, begin=True)
        recording.put(4)
    assert recording.read() == [1, 2, 3, 4]
    assert recording.journal.state == "closed" and recording.journal.records == 4


def test_only_the_owner_can_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Recording(tmp_path / "j") as recording:
            recording.put(1, begin=True)
    finally:
        os.umask(before)
    assert (tmp_path / "j").stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "j").iterdir()] == [0o600]


def test_files_rotate_by_size_and_the_oldest_go(tmp_path: Path) -> None:
    with Recording(tmp_path, rotate_bytes=65_536, retention_bytes=300_000) as recording:
        number = 0
        for _ in range(40):
            wanted = recording.journal.wants_rotation()
            recording.put(*range(number, number + 200), begin=wanted)
            number += 200
            recording.until(lambda: not recording.journal.waiting)
    found = recording.read()
    assert found == list(range(found[0], number)), "the newest are there, without a hole"
    assert 0 < found[0], "the oldest are not"
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) > 2 and sum(sizes) < 300_000 and max(sizes) < 2 * 65_536


def test_old_files_are_deleted(tmp_path: Path) -> None:
    for number in (1, 2):
        with Recording(tmp_path / "j") as recording:
            recording.journal.name = f"old{number}"
            recording.put(number, begin=True)
    os.utime(tmp_path / "j" / "old1.000001.jsonl.zst", (0, 0))
    with Recording(tmp_path / "j", retention_days=1.0) as recording:
        recording.put(3, begin=True)
    assert sorted(path.name for path in (tmp_path / "j").iterdir()) == ["old2.000001.jsonl.zst", "t.000001.jsonl.zst"]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A disk that may be full after some bytes of the next write, or stand still."""
    state: dict[str, Any] = {"room": None, "go": threading.Event(), "tries": 0}
    state["go"].set()
    write = os.write

    def limited(descriptor: int, data: Any) -> int:
        if threading.current_thread().name != "journal":
            return write(descriptor, data)
        state["go"].wait(5)
        if state["room"] is None:
            return write(descriptor, data)
        if not state["room"]:
            state["tries"] += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        count = write(descriptor, bytes(data)[: state["room"]])
        state["room"] -= count
        return count

    monkeypatch.setattr(writer.os, "write", limited)
    yield state
    state["go"].set()


def test_full_disk_degrades_and_recording_goes_on_when_there_is_room(tmp_path: Path, disk: dict[str, Any]) -> None:
    with Recording(tmp_path / "j") as recording:
        recording.put(1, begin=True)
        recording.until(lambda: recording.journal.records == 1)
        disk["room"] = 40  # a part of the next block fits
        recording.put(2)
        recording.put(3)
        recording.until(lambda: disk["tries"] > 2)
        assert recording.journal.state == "degraded" and recording.journal.why == "No space left on device"
        disk["room"] = None
        recording.until(lambda: recording.journal.state == "recording" and recording.journal.records == 3)
    assert recording.read() == [1, 2, 3], "nothing of what could wait is lost, and nothing stands there in part"


def test_disk_full_from_the_start_leaves_no_empty_files(tmp_path: Path, disk: dict[str, Any]) -> None:
    disk["room"] = 0
    with Recording(tmp_path / "j") as recording:
        recording.put(1, begin=True)
        # while it tries there is one for a moment
        recording.until(lambda: disk["tries"] > 3 and not list((tmp_path / "j").iterdir()))
        disk["room"] = None
        recording.until(lambda: recording.journal.records == 1)
    assert recording.read() == [1]


def test_a_disk_too_slow_costs_records_and_says_how_many(tmp_path: Path, disk: dict[str, Any]) -> None:
    with Recording(tmp_path / "j", backlog_bytes=40) as recording:  # of packed blocks: one
        recording.put(1, begin=True)
        recording.until(lambda: recording.journal.records == 1)
        disk["go"].clear()
        assert recording.put(2, size=600)
        assert not recording.put(3, 4, size=600)
        assert not recording.put(5, size=600)
        assert recording.journal.state == "degraded" and recording.journal.lost == 3
        disk["go"].set()
        recording.until(lambda: recording.journal.state == "recording")
        assert recording.put(6, size=200)
    assert recording.read() == [1, 2, ("lost", 3), 6]


def test_a_folder_that_cannot_be_made_degrades(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Recording(tmp_path / "file") as recording:
        recording.put(1, begin=True)
        recording.until(lambda: recording.journal.state == "degraded")
        assert "exists" in recording.journal.why


# -- the command -------------------------------------------------------------------------------------------------------


def test_list_shows_spans_counts_and_sizes(tmp_path: Path) -> None:
    data, _ = file_of(3)
    (tmp_path / "a.jsonl.zst").write_bytes(data)
    result = CliRunner().invoke(main, ["journal", "ls", str(tmp_path)])
    assert result.exit_code == 0 and "relay t, run 1" in result.output and "16 records" in result.output
    result = CliRunner().invoke(main, ["journal", "ls", "--json", "--sessions", str(tmp_path)])
    listed = json.loads(result.output)
    assert listed["records"] == 16 and listed["bytes"] == len(data)
    assert [(s["conn"], s["frames"]) for s in listed["sessions"]] == [("coinapi/1", 15)]
    assert overview(tmp_path / "a.jsonl.zst").records == 16


def test_cat_prints_the_lines(tmp_path: Path) -> None:
    data, texts = file_of(3)
    (tmp_path / "a.jsonl.zst").write_bytes(data)
    run = CliRunner().invoke
    assert run(main, ["journal", "cat", str(tmp_path)]).stdout_bytes == b"".join(texts)
    assert run(main, ["journal", "cat", "--frames", str(tmp_path)]).stdout_bytes == b"".join(texts[1:])
    assert run(main, ["journal", "cat", "--provider", "kraken", str(tmp_path)]).stdout_bytes == b""
    from_ = ["--from", str(NOW + 3), "--to", str(NOW + 5)]
    assert run(main, ["journal", "cat", *from_, str(tmp_path)]).stdout_bytes == frame(3) + frame(4)
