"""How a segment of the spool is laid out in bytes: records to bytes and back, whatever a crash or a disk did to them.

A segment: 16 bytes of head (mark, version, CRC), then records. A record: mark, version, kind, length, CRC of version,
kind and payload (`zlib.crc32`), payload. All numbers little-endian. The mark of a record is no UTF-8 and so stands in
no payload: behind a damaged record the next whole one is found by searching for it.

A batch holds all that one write accepted, topic by topic: a line of JSON (the topics, how many entries each has, then
the ids and lengths of all entries), then the bodies in that order. One CRC serves all of it: at 300 bytes each, one CRC
an entry cost more than all else here. It may be packed by zstd.
"""

import struct
from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple
from zlib import crc32

import msgspec

from relay.zst import zstd

VERSION = 3
"""Raised when an older reader would misunderstand what is written."""
BATCH, TOPIC, MARKS, PACKED = 1, 2, 3, 4
"""Entries; what a topic is, before its first entry in a segment; the newest entries that Redis has confirmed; entries
packed by zstd."""
LEVEL = -5
"""Leaves a seventh of trades at 0.29 us a message; level 1 leaves half of that and costs half as much again."""
PACKED_FROM = 4096
"""A batch of fewer bytes is written as it is."""

_FILE = struct.Struct("<8sII")
_FILE_MARK = b"RLYSPOOL"
HEAD = struct.Struct("<2sBBII")
MARK = b"\xf5\xfa"
LENGTH_MAX = 1 << 30
"""No record is longer: a length above this is damage."""

READABLE = (2, VERSION)
SEED = {
    (version, kind): crc32(bytes([version, kind])) for version in READABLE for kind in (BATCH, TOPIC, MARKS, PACKED)
}
HEAD_SIZE = HEAD.size
FILE_HEAD_SIZE = _FILE.size


_encode = msgspec.json.Encoder().encode
_packer = zstd.ZstdCompressor(level=LEVEL)
_table = msgspec.json.Decoder(tuple[list[str], list[int], list[str], list[int]]).decode


class About(msgspec.Struct):
    """The payload of a TOPIC record."""

    name: str
    kind: str
    provider: str
    contiguous: bool = False
    """The provider numbers its messages without holes: what is missing can be counted."""
    after: str = ""
    """The entry behind which its run began: of an earlier run, or of another relay that wrote meanwhile."""


class Record(NamedTuple):
    """A whole record and where it begins."""

    at: int
    kind: int
    payload: bytes

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.at + HEAD_SIZE + len(self.payload)


class Parsed(NamedTuple):
    """What stands in a piece of a segment. `at`: where reading goes on. `damaged`: begin and end of what is none."""

    records: list[Record]
    at: int
    damaged: list[tuple[int, int]]


def file_head(version: int = VERSION) -> bytes:
    """The first bytes of a segment."""
    head = _FILE_MARK + version.to_bytes(4, "little")
    return head + crc32(head).to_bytes(4, "little")


def file_version(data: bytes) -> int | None:
    """Read the version of a segment; None where its head is damaged."""
    if len(data) < FILE_HEAD_SIZE:
        return None
    mark, version, crc = _FILE.unpack_from(data)
    return int(version) if mark == _FILE_MARK and crc == crc32(data[: FILE_HEAD_SIZE - 4]) else None


def record(kind: int, payload: bytes) -> bytes:
    """Write one record."""
    return HEAD.pack(MARK, VERSION, kind, len(payload), crc32(payload, SEED[VERSION, kind])) + payload


def batch(
    names: list[str], counts: list[int], ids: list[str], bodies: list[bytes], *, pack: bool = False
) -> tuple[bytes, bytes]:
    """Write a BATCH or PACKED record, in two parts: for each topic the number of its entries, then all entries, topic
    by topic and oldest first. HOT."""
    payload = b"".join((_encode((names, counts, ids, [*map(len, bodies)])), b"\n", *bodies))
    kind = BATCH
    if pack and len(payload) >= PACKED_FROM:
        kind, payload = PACKED, _packer.compress(payload, _packer.FLUSH_FRAME)
    return HEAD.pack(MARK, VERSION, kind, len(payload), crc32(payload, SEED[VERSION, kind])), payload


def entries(found: Record, wanted: Container[str] | None = None) -> Iterator[tuple[str, list[str], list[bytes]]]:
    """Read a BATCH or PACKED record, nothing of another: each topic with the ids and bodies of its entries, oldest
    first.

    `wanted`: the topics to give; all by default.
    """
    if found.kind not in (BATCH, PACKED):
        return
    payload = found.payload if found.kind == BATCH else zstd.decompress(found.payload)
    at = payload.index(b"\n") + 1
    names, counts, ids, lengths = _table(memoryview(payload)[:at])
    begin = 0
    for name, count in zip(names, counts, strict=True):
        end = begin + count
        if wanted is not None and name not in wanted:
            at += sum(lengths[begin:end])
        else:
            bodies: list[bytes] = []
            for length in lengths[begin:end]:
                bodies.append(payload[at : at + length])
                at += length
            yield name, ids[begin:end], bodies
        begin = end


def topic(about: About) -> bytes:
    """Write a TOPIC record."""
    return record(TOPIC, msgspec.json.encode(about))


def marks(confirmed: Mapping[str, str]) -> bytes:
    """Write a MARKS record: topic to newest confirmed id."""
    return record(MARKS, msgspec.json.encode(confirmed))


def parse(data: bytes, at: int, *, final: bool) -> Parsed:
    """Read records from an offset on.

    `final`: nothing follows `data`; then damage is skipped to the next whole record, and what is damaged or torn at the
    end is named too. Else reading stops at the first thing that is not whole, `at` its offset: ask again with more.
    """
    records: list[Record] = []
    damaged: list[tuple[int, int]] = []
    size = len(data)
    while at < size:
        end = _whole(data, at, size)
        if not end:
            if not final:
                break
            begin, at = at, _next(data, at + 1, size)
            damaged.append((begin, at))
            continue
        records.append(Record(at, data[at + 3], data[at + HEAD_SIZE : end]))
        at = end
    return Parsed(records, at, damaged)


def _whole(data: bytes, at: int, size: int) -> int:
    """Give the end of the record at an offset; 0 where there is no whole one."""
    if at + HEAD_SIZE > size:
        return 0
    mark, version, kind, length, crc = HEAD.unpack_from(data, at)
    end: int = at + HEAD_SIZE + length
    seed = SEED.get((version, kind))
    if mark != MARK or seed is None or length > LENGTH_MAX or end > size:
        return 0
    return end if crc32(memoryview(data)[at + HEAD_SIZE : end], seed) == crc else 0


def _next(data: bytes, at: int, size: int) -> int:
    """Give the offset of the next whole record, or the end."""
    while (at := data.find(MARK, at)) >= 0:
        if _whole(data, at, size):
            return at
        at += 1
    return size
