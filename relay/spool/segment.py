"""One segment of the spool: a file, and what is known of it without reading it again."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from zlib import crc32

import msgspec

from relay.spool.layout import (
    FILE_HEAD_SIZE,
    MARKS,
    TOPIC,
    VERSION,
    About,
    Parsed,
    entries,
    file_version,
    parse,
)

CHUNK = 256 * 1024
"""Read at once: about 1 ms of work, 5 where it is packed, so that sockets do not wait."""
SUFFIX = ".spool"
INDEX = ".index"
"""Beside each full segment: what a start needs of it, so that only the newest segment must be read."""


class Index(msgspec.Struct):
    """The content of an index file, behind its CRC."""

    size: int
    newest_ms: int
    first: dict[str, int]
    last: dict[str, str]
    about: list[About]
    marks: dict[str, str]
    bodies: dict[str, str]


class Newer(Exception):
    """The segment was written by a newer relay."""


class Segment:
    """`first`: offset of the batch with each topic's first entry. `last`: id of its last one. `counts`: how many it has
    here. `size`: bytes of whole records. `newest_ms`: time of the newest entry, once it is full. `about`, `marks`,
    `bodies`: see Found; of the segment that is written. `after`: see About, where there is something.
    """

    __slots__ = ("about", "after", "bodies", "counts", "first", "last", "marks", "newest_ms", "number", "path", "size")

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.path = folder / f"{number:012d}{SUFFIX}"
        self.first: dict[str, int] = {}
        self.last: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.size = 0
        self.newest_ms = 0
        self.about: dict[str, About] = {}
        self.after: dict[str, str] = {}
        self.marks: dict[str, str] = {}
        self.bodies: dict[str, bytes] = {}

    def begins(self, abouts: Iterable[About]) -> None:
        """Note behind what the runs of topics began."""
        self.after |= {about.name: about.after for about in abouts if about.after}

    def write_index(self) -> None:
        """Write the index of a full segment. Raises: OSError."""
        bodies = {name: body.decode() for name, body in self.bodies.items() if is_numbered(body)}
        about = list(self.about.values())
        index = Index(self.size, self.newest_ms, self.first, self.last, about, self.marks, bodies)
        data = msgspec.json.encode(index)
        fresh = self.path.with_suffix(".new")
        fresh.write_bytes(b"%08x " % crc32(data) + data)
        fresh.replace(self.path.with_suffix(INDEX))
        self.about, self.marks, self.bodies = {}, {}, {}

    def read_index(self) -> Index | None:
        """Read the index; None where there is none that fits."""
        try:
            crc, _, data = self.path.with_suffix(INDEX).read_bytes().partition(b" ")
            if crc != b"%08x" % crc32(data):
                return None
            index = msgspec.json.decode(data, type=Index)
            return index if index.size == self.path.stat().st_size else None
        except (OSError, msgspec.MsgspecError):
            return None

    def unlink(self) -> None:
        """Remove it. Raises: OSError."""
        self.path.with_suffix(INDEX).unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def read(self, at: int) -> Parsed:
        """Read records from an offset on, about CHUNK bytes of them; damage is skipped and named."""
        at = max(at, FILE_HEAD_SIZE)
        with open(self.path, "rb", buffering=0) as file:
            size = CHUNK
            while True:
                data = os.pread(file.fileno(), min(size, self.size - at), at)
                final = at + len(data) >= self.size or not data
                parsed = parse(data, 0, final=final)
                if parsed.records or final:
                    break
                size = size * 16 if size < 1 << 24 else self.size  # a batch larger than that, or damage
        records = [found._replace(at=found.at + at) for found in parsed.records]
        return Parsed(records, at + parsed.at, [(begin + at, end + at) for begin, end in parsed.damaged])


class Found:
    """What earlier runs have left, topic by topic, oldest to newest: filled segment by segment."""

    def __init__(self) -> None:
        self.about: dict[str, About] = {}
        self.marks: dict[str, str] = {}
        self.last: dict[str, str] = {}
        self.bodies: dict[str, bytes] = {}
        """The newest entry of each topic that speaks of the provider's numbers."""
        self.damaged = 0
        """Places where a record is damaged; a torn end of the newest segment is none."""
        self.torn = False

    def load(self, segment: Segment, *, newest: bool) -> None:
        """Read a segment of an earlier run. Raises: OSError, Newer."""
        index = segment.read_index()
        if index is not None:
            segment.size, segment.newest_ms = index.size, index.newest_ms
            segment.first, segment.last = index.first, index.last
            self.about |= {about.name: about for about in index.about}
            segment.begins(index.about)
            self.marks |= index.marks
            self.bodies |= {name: body.encode() for name, body in index.bodies.items()}
            self.last |= index.last
            return
        data = segment.path.read_bytes()
        version = file_version(data)
        if version is not None and version > VERSION:
            raise Newer(f"{segment.path} is of version {version}, this relay reads up to {VERSION}")
        if version is None and data:
            self.damaged += 1
        parsed = parse(data, min(FILE_HEAD_SIZE, len(data)), final=True)
        segment.size = parsed.at
        for begin, end in parsed.damaged:
            if end == len(data) and newest:
                self.torn = True
                segment.size = begin
                os.truncate(segment.path, begin)
            else:
                self.damaged += 1
        first, last, counts, bodies = segment.first, segment.last, segment.counts, self.bodies
        for record in parsed.records:
            for name, ids, found in entries(record):
                first.setdefault(name, record.at)
                counts[name] = counts.get(name, 0) + len(ids)
                last[name] = ids[-1]
                body = next(filter(is_numbered, reversed(found)), None)
                if body is not None:
                    bodies[name] = body
            if record.kind == TOPIC:
                about = _about(record.payload)
                if about is not None:
                    self.about[about.name] = about
                    segment.begins([about])
            elif record.kind == MARKS:
                self.marks |= _marks(record.payload)
        self.last |= last
        segment.newest_ms = newest_ms(last)


def newest_ms(last: Mapping[str, str]) -> int:
    """Give the time of the newest of some ids."""
    return max((int(entry_id.partition("-")[0]) for entry_id in last.values()), default=0)


def is_numbered(body: bytes) -> bool:
    """Tell whether a message carries a number of its provider."""
    return b'"src_seq":' in body or b'"last_missing":' in body


def _about(payload: bytes) -> About | None:
    try:
        return msgspec.json.decode(payload, type=About)
    except msgspec.MsgspecError:
        return None


def _marks(payload: bytes) -> dict[str, str]:
    try:
        return msgspec.json.decode(payload, type=dict[str, str])
    except msgspec.MsgspecError:
        return {}
