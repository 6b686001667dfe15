"""The spool: accepted messages on disk, so that neither a crash of ours nor a loss of Redis' loses them.

Append-only segments. One write(2) a read batch, before anything of it goes to Redis; an entry that was not written was
not accepted. Kept after Redis has confirmed it, for the day on which Redis comes back with less than it had taken. A
disk that is full or broken never stops the relay: it goes on without, says so, and recovers by itself.
"""

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.to_thread

from relay.errors import SpoolError, SpoolUnusable
from relay.outbox import Past, Position, order
from relay.spool.layout import About, batch, entries, file_head, marks, topic
from relay.spool.segment import SUFFIX, Found, Newer, Segment, is_numbered, newest_ms

_TYPE, STATUS = itemgetter(slice(9, 10)), b"s"
"""A body begins with `{"type":"`; of all types only `status` goes on with an s."""
RETRY_SECS = 0.5
"""A disk that took nothing is tried again this often."""
PARTS_MAX = 1_000
"""Most parts of one writev(2), below any system's bound."""
SYNC_SECS = 0.25
"""`fsync: interval`: what a power cut may take of what was accepted."""
ROTATIONS = 8
"""A segment is closed at this part of the retention time, so that quiet relays let go of old data too."""
RESERVE_SHARE = 8
"""Account topics may use this part of `bytes_max` on top of it: their sockets are stopped last."""


class TopicLike(Protocol):
    """What the spool needs of a topic."""

    name: str
    kind: str
    provider: str
    contiguous: bool
    last_id: str | None


class Confirmed(Protocol):
    """What Redis is known to have."""

    def __call__(self, name: str) -> tuple[str, bool]:
        """The newest confirmed id of a topic (empty: unknown), and whether Redis takes nothing for it."""


class Spool:
    """`open`, then `write` each batch, `tidy` about once a second, `close`.

    `on_event(kind, fields)`: spool_damaged, spool_degraded (the disk takes nothing), spool_recovered, spool_full,
    spool_dropped, spool_elsewhere.
    """

    def __init__(
        self,
        folder: Path,
        *,
        segment_bytes: int,
        retention_secs: float,
        bytes_max: int,
        fsync: str = "interval",
        pack: bool = False,
        on_event: Callable[[str, dict[str, Any]], None] = lambda kind, fields: None,
        target: Mapping[str, str] | None = None,
        beside: Collection[str] = (),
    ) -> None:
        """`beside`: relays whose folders may stand beside this one without a word."""
        self.folder = folder
        self.ok = True
        """The disk takes what it is given."""
        self.full = self.brimful = False
        """`bytes_max` is reached by what Redis does not have; `brimful`: the reserve of account topics too."""
        self.confirmed: Confirmed = lambda name: ("", False)
        self.bytes = self.written = self.dropped = self.damaged = self.failures = 0
        self.why = ""
        self._segment_bytes, self._bytes_max, self._fsync, self._pack = segment_bytes, bytes_max, fsync, pack
        self._retention_ms = int(retention_secs * 1000)
        self._event, self._target, self._beside = on_event, dict(target or {}), beside
        self._segments: list[Segment] = []
        self._current: Segment | None = None
        self._fd = -1
        self._begun = 0.0
        self._lock = -1
        self._retry_at = 0.0
        self._dirty = False
        self._retired: list[int] = []
        self._marked: dict[str, str] = {}
        self._told_full = False

    # -- start and end -------------------------------------------------------------------------------------------

    def open(self) -> Found:
        """Take the folder and read what earlier runs have left.

        Raises: SpoolUnusable where the disk does not let us, SpoolError where another process uses it, or a newer relay
        wrote it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolUnusable(f"no spool in {self.folder}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._unlock()
            raise SpoolError(f"the spool {self.folder} is in use by another relay process") from error
        try:
            return self._load()
        except OSError as error:
            self._unlock()
            raise SpoolUnusable(f"the spool {self.folder} cannot be read: {error.strerror}") from error
        except Newer as error:
            self._unlock()
            text = f"{error}: start the newer relay, or move {self.folder} away (what Redis lacks is then not sent)"
            raise SpoolError(text) from error

    def _load(self) -> Found:
        with contextlib.suppress(OSError):  # a full disk is no reason not to start
            (self.folder / "about.json").write_text(json.dumps(self._target) + "\n")
        found = Found()
        paths = sorted(path for path in self.folder.glob(f"*{SUFFIX}") if path.stem.isdigit())
        for path in paths:
            segment = Segment(self.folder, int(path.stem))
            segment.path = path
            found.load(segment, newest=path == paths[-1])
            if segment.first:
                self._segments.append(segment)
                self.bytes += segment.size
            else:
                segment.unlink()
        self._next = int(paths[-1].stem) + 1 if paths else 1
        self._marked = dict(found.marks)
        self.damaged = found.damaged
        if found.damaged:
            self._event("spool_damaged", {"places": found.damaged, "folder": str(self.folder)})
        folders = {path.parent for path in self.folder.parent.glob(f"*/*{SUFFIX}")} - {self.folder}
        others = sorted(folder.name for folder in folders if folder.name.rpartition("-")[0] not in self._beside)
        if others:
            self._event("spool_elsewhere", {"folders": others[:5]})
        return found

    def close(self) -> None:
        """Make all safe, let go of the folder."""
        self._end()
        for fd in (*self._retired, self._fd):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    if self._fsync != "never":
                        os.fdatasync(fd)
                    os.close(fd)
        self._fd, self._retired, self._current = -1, [], None
        self._unlock()

    def clear(self) -> None:
        """Let go of all that is here: another relay has written since, and none of it may be sent any more."""
        self._end()
        for segment in self._segments:
            with contextlib.suppress(OSError):
                segment.unlink()
        self._segments.clear()
        self._marked.clear()
        self.bytes = 0

    def begin_run(self) -> None:
        """What comes from here on is another run's: its topics begin anew behind what Redis has then."""
        self._end()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # -- writing -------------------------------------------------------------------------------------------------

    @property
    def resting(self) -> bool:
        """The disk has just taken nothing: it is tried again a little later."""
        return not self.ok and time.monotonic() < self._retry_at

    def write(self, topics: Sequence[TopicLike], counts: list[int], ids: list[str], bodies: list[bytes]) -> bool:
        """Write a batch in one go; False: the disk does not take it. HOT.

        `counts`: entries of each topic; `ids`, `bodies`: of all entries, topic by topic, oldest first.
        """
        try:
            segment = self._current or self._begin()
            begin, first = segment.size, segment.first
            names = [one.name for one in topics]
            told = [] if first.keys() >= set(names) else [one for one in topics if one.name not in first]
            abouts = [About(one.name, one.kind, one.provider, one.contiguous, one.last_id or "") for one in told]
            self._put(segment, *map(topic, abouts), *batch(names, counts, ids, bodies, pack=self._pack))
        except OSError as error:
            self._failed(error)
            return False
        for one in abouts:
            first[one.name] = begin
            segment.about[one.name] = one
        segment.begins(abouts)
        ends = list(accumulate(counts))
        newest = [bodies[end - 1] for end in ends]
        segment.last.update(zip(names, [ids[end - 1] for end in ends], strict=True))
        if STATUS not in map(_TYPE, newest):
            segment.bodies.update(zip(names, newest, strict=True))
        else:
            for name, count, end in zip(names, counts, ends, strict=True):
                if _TYPE(bodies[end - 1]) != STATUS:
                    segment.bodies[name] = bodies[end - 1]
                else:  # the newest before it that carries a number, if any
                    segment.bodies.update((name, body) for body in filter(is_numbered, bodies[end - count : end]))
        if not self.ok:
            self.ok = True
            self._event("spool_recovered", {"folder": str(self.folder)})
        if segment.size >= self._segment_bytes:
            self._end()
        if self.bytes >= self._bytes_max:
            self.make_room()
        return True

    def _put(self, segment: Segment, *parts: bytes) -> None:
        size = sum(map(len, parts))
        try:
            written = os.writev(self._fd, parts[:PARTS_MAX])
            if written < size:  # the disk is about to be full, or there are very many new topics
                view = memoryview(b"".join(parts))[written:]
                while view:
                    view = view[os.write(self._fd, view) :]
            if self._fsync == "always":
                os.fdatasync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, segment.size)
            raise
        self._dirty = True
        segment.size += size
        self.bytes += size
        self.written += size

    def _begin(self) -> Segment:
        segment = Segment(self.folder, self._next)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(segment.path, flags, 0o600)
        try:
            self._put(segment, file_head())
            if self._marked:
                self._put(segment, marks(self._marked))
                segment.marks = dict(self._marked)
        except OSError:
            self.bytes -= segment.size
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(OSError):
                segment.path.unlink()
            raise
        self._next += 1
        self._begun = time.monotonic()
        self._segments.append(segment)
        self._current = segment
        return segment

    def _end(self) -> None:
        """Close the current segment; the next batch begins another."""
        if self._current is not None:
            self._retired.append(self._fd)
            self._current.newest_ms = newest_ms(self._current.last)
            with contextlib.suppress(OSError):  # without an index the next start reads all of it
                self._current.write_index()
            self._current, self._fd = None, -1

    def _failed(self, error: OSError) -> None:
        self._retry_at = time.monotonic() + RETRY_SECS
        self.failures += 1
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and self._drop(lambda segment: self._needed(segment) == "no"):
            self._retry_at = 0.0  # there is room again: the next batch tries at once
        if self.ok:
            self.ok = False
            self.why = error.strerror or str(error)
            self._event("spool_degraded", {"why": self.why, "folder": str(self.folder)})

    async def run(self) -> None:
        """Make what is written safe now and then, in a thread; closes the files of full segments."""
        while True:
            await anyio.sleep(SYNC_SECS)
            retired, self._retired = self._retired, []
            fds = [*retired, self._fd] if self._dirty and self._fd >= 0 else retired
            self._dirty = False
            try:
                if self._fsync == "interval":
                    for fd in fds:
                        await anyio.to_thread.run_sync(_make_safe, fd)
            except OSError as error:
                self._failed(error)
            finally:
                for fd in retired:
                    os.close(fd)

    @property
    def newest_ms(self) -> int:
        """Time of the newest entry."""
        return max((segment.newest_ms or newest_ms(segment.last) for segment in self._segments), default=0)

    # -- keeping -------------------------------------------------------------------------------------------------

    def acknowledge(self, confirmed: Mapping[str, str]) -> None:
        """Note what Redis has confirmed, for the next start; only what is new is written."""
        fresh = {name: last for name, last in confirmed.items() if self._marked.get(name) != last}
        if not fresh or not self.ok or self._current is None:
            return
        try:
            self._put(self._current, marks(fresh))
        except OSError as error:
            self._failed(error)
            return
        self._marked |= fresh
        self._current.marks |= fresh

    def tidy(self, now_ms: int) -> None:
        """Let go of what is old and confirmed."""
        current = self._current
        age_secs = self._retention_ms / 1000 / ROTATIONS
        if current is not None and current.first and time.monotonic() - self._begun > max(1.0, age_secs):
            self._end()
        oldest = now_ms - self._retention_ms
        self._drop(lambda segment: segment.newest_ms < oldest and self._needed(segment) == "no")
        if self.bytes >= self._bytes_max:
            self.make_room()

    def make_room(self) -> bool:
        """Get below `bytes_max` by letting go of what Redis has; then of what it refuses. Tells whether it is below."""
        self._drop(lambda segment: self.bytes >= self._bytes_max and self._needed(segment) == "no")
        if self.bytes >= self._bytes_max:
            self._drop(lambda segment: self.bytes >= self._bytes_max and self._needed(segment) == "blocked")
        self.full = self.bytes >= self._bytes_max
        self.brimful = self.bytes >= self._bytes_max + self._bytes_max // RESERVE_SHARE
        if self.full != self._told_full:
            self._told_full = self.full
            if self.full:
                self._event("spool_full", {"bytes": self.bytes, "folder": str(self.folder)})
        return not self.full

    def _needed(self, segment: Segment) -> str:
        """Whether Redis lacks something of a segment: no, yes, or `blocked`: only topics that it refuses."""
        answer = "no"
        for name, last in segment.last.items():
            newest, blocked = self.confirmed(name)
            if not newest or order(newest) < order(last):
                if not blocked:
                    return "yes"
                answer = "blocked"
        return answer

    def _drop(self, may_go: Callable[[Segment], bool]) -> int:
        """Remove segments from the oldest on while they may go."""
        dropped = 0
        while self._segments and self._segments[0] is not self._current and may_go(self._segments[0]):
            segment = self._segments.pop(0)
            self.bytes -= segment.size
            dropped += 1
            with contextlib.suppress(OSError):
                segment.unlink()
        self.dropped += dropped
        return dropped

    # -- reading -------------------------------------------------------------------------------------------------

    def end(self) -> Position:
        """Where the next entry will stand."""
        return Position(self._current.number, self._current.size) if self._current else Position(self._next, 0)

    def find(self, name: str, after: str, is_beyond: Callable[[str], bool] | None = None) -> Position | None:
        """Where to begin to read for a topic's entries above an id; None: there are none.

        `is_beyond`: tells that an entry and those before it are of no use: nothing is read for their sake but the last
        segment of them, whose end shows that nothing is missing behind it.
        """
        bound = order(after)
        found: Position | None = None
        for segment in self._segments:
            last = segment.last.get(name)
            if last is None or order(last) <= bound:
                continue
            useful = is_beyond is None or not is_beyond(last)
            if found is None or not useful:
                found = Position(segment.number, segment.first[name])
            if useful:
                break
        return found

    def count(self, name: str, position: Position) -> int:
        """Entries of earlier runs of a topic from the segment of a position on."""
        return sum(segment.counts.get(name, 0) for segment in self._segments if segment.number >= position.segment)

    def read(self, position: Position, names: Collection[str]) -> tuple[list[Past], Position, bool]:
        """Read some entries of topics from a position on: the entries, where to go on, whether that is the end.

        Damage is skipped: a hole in the topic's own numbers shows it.
        """
        for segment in self._segments:
            if segment.number < position.segment:
                continue
            at = position.offset if segment.number == position.segment else 0
            if at >= segment.size or not any(name in segment.first for name in names):
                continue
            try:
                parsed = segment.read(at)
            except OSError as error:
                self._event("spool_damaged", {"places": 1, "folder": str(segment.path), "why": error.strerror})
                position = Position(segment.number, segment.size)
                continue
            if parsed.damaged:
                self.damaged += len(parsed.damaged)
                self._event("spool_damaged", {"places": len(parsed.damaged), "folder": str(segment.path)})
            found = []
            for record in parsed.records:
                after = Position(segment.number, record.end)
                found += [
                    Past(name, ids, bodies, after, segment.after.get(name, "") if order(ids[0])[1] == 1 else "")
                    for name, ids, bodies in entries(record, names)
                ]
            return found, Position(segment.number, parsed.at), False
        return [], self.end(), True


def _make_safe(fd: int) -> None:
    """Put a file on disk and its pages out of memory: nobody reads them but a restart or a heal, and a page that is
    free again is cheaper to write to than another one."""
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
