"""Recording: lines are handed over in batches, each of which becomes a block; a thread writes them.

Lines are made and packed by the loop: what it has just read lies in its core's cache, and a second thread that runs
slows it down by more than it does (packing costs 0.4 us a frame; in the thread it cost 1.3). Only the disk is waited
for elsewhere.

Nothing here may stop the relay: what cannot be written (a full disk, one that is too slow) is counted, told by `state`
and left out, and recording goes on by itself when the disk takes bytes again. Memory is bounded by BACKLOG_BYTES.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from relay.journal.blocks import compress, marker, new_compressor, pack

BACKLOG_BYTES = 32 * 1024 * 1024
"""What may wait for the disk, packed; some seconds of the fastest feed measured."""
WRITE_BYTES = 256 * 1024
"""Written together when so much waits."""
LINGER_SECS = 0.05
"""How long less than that waits for more."""
RETRY_SECS = 1.0
"""Pause before the disk is tried again."""
SUFFIX = ".jsonl.zst"


class JournalSettings(Protocol):
    """The `journal` section of relay.yaml, as far as writing needs it."""

    @property
    def rotate_bytes(self) -> int: ...
    @property
    def rotate_secs(self) -> float: ...
    @property
    def retention_bytes(self) -> int: ...
    @property
    def retention_days(self) -> float: ...
    @property
    def fsync(self) -> str: ...


class Batch(NamedTuple):
    """Whole lines in order, handed over together. `header`, where there is one, begins a new file."""

    lines: bytes
    records: int
    first_ns: int
    last_ns: int
    header: Callable[[int], bytes] | None = None
    """Called with the number of the file; gives its first line."""


class _Block(NamedTuple):
    """A batch, packed."""

    packed: bytes
    raw: int
    batch: Batch
    """Without its lines."""


class _Lost:
    """Stands in the line of batches where some were left out."""

    def __init__(self, first_ns: int) -> None:
        self.records, self.first_ns = 0, first_ns


class Journal:
    """One run's recording. `put` and the attributes from the loop's thread, everything else in its own.

    `state` is `recording`, `degraded` or
    `closed`; `why` says what is wrong. `written` counts bytes in files, `file_bytes` those of the current one,
    `lost` records that were left out.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: JournalSettings,
        *,
        lost_line: Callable[[int, int, str], bytes],
        backlog_bytes: int = BACKLOG_BYTES,
        retry_secs: float = RETRY_SECS,
    ) -> None:
        self.folder, self.name, self.settings = folder, name, settings
        self._lost_line = lost_line
        self._backlog_bytes, self._retry_secs = backlog_bytes, retry_secs
        self.state = "recording"
        self.why = ""
        self.written = self.file_bytes = self.records = self.lost = self.files = 0
        self.began_secs = 0.0
        """Monotonic time at which the current file began; 0: there is none."""
        self.waiting = 0
        """Bytes handed over and not yet written."""
        self._blocks: deque[_Block | _Lost] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._file: int | None = None
        self._block = 0
        self._compressor = new_compressor()
        self._rotating = False
        self._begun: _Block | None = None  # the last one whose header stands in a file
        self._owed: _Lost | None = None  # told when the next file begins
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    # the loop's side

    def start(self) -> None:
        self._thread.start()

    def put(self, batch: Batch) -> bool:
        """Hand over a batch; False: too much waits already, it was left out and counted."""
        if self.waiting >= self._backlog_bytes and self._blocks:
            return self._leave_out(batch, "the disk is too slow, too much waits for it")
        try:
            block = _Block(compress(batch.lines, self._compressor), len(batch.lines), batch._replace(lines=b""))
        except Exception as error:  # whatever it is must not end the relay
            self._compressor = new_compressor()
            return self._leave_out(batch, f"{type(error).__name__}: {error}")
        with self._wake:
            self.waiting += len(block.packed)
            self._blocks.append(block)
            # a thread that wakes takes turns from the loop: for the first block, then for many
            if len(self._blocks) == 1 or self.waiting >= WRITE_BYTES:
                self._wake.notify()
            self._rotating = self._rotating or batch.header is not None
        return True

    def _leave_out(self, batch: Batch, why: str) -> bool:
        """Note in the line of blocks that these are missing."""
        with self._wake:
            if not self._blocks or not isinstance(self._blocks[-1], _Lost):
                self._blocks.append(_Lost(batch.first_ns))
            last = self._blocks[-1]
            assert isinstance(last, _Lost)
            last.records += batch.records
            self.lost += batch.records
            if self.state == "recording":
                self.state, self.why = "degraded", why
            self._wake.notify()
        return False

    def wants_rotation(self) -> bool:
        """Tell whether the next batch should bring a header, and so begin a new file."""
        settings = self.settings
        if self._rotating:
            return False
        if not self.began_secs:
            return True
        age = time.monotonic() - self.began_secs
        return self.file_bytes >= settings.rotate_bytes or bool(settings.rotate_secs and age >= settings.rotate_secs)

    def close(self, timeout_secs: float = 2.0) -> None:
        """Write what waits and end. Blocks: call it in a worker thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_secs)

    # the thread's side

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._blocks and not self._closing:
                    self._wake.wait()
                if not self._blocks:
                    break
                if self.waiting < WRITE_BYTES and not self._closing:
                    self._wake.wait(LINGER_SECS)
                found = self._next()
            try:
                if isinstance(found, _Lost):
                    self._tell(found)
                else:
                    self._write(found)
            except Exception as error:  # whatever it is must not end recording for good
                text = (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"
                with self._wake:
                    self.state, self.why = "degraded", str(text)
                    if not isinstance(error, OSError):  # it would fail again
                        self._done(found)
                        self._owe(found)
                    if self._closing:
                        break
                    self._wake.wait(self._retry_secs)
                continue
            with self._wake:
                self._done(found)
                if self.state == "degraded" and self._file is not None and self.waiting < self._backlog_bytes // 2:
                    self.state, self.why = "recording", ""
        self._finish_file()
        self.state = "closed"

    def _done(self, found: "list[_Block] | _Lost") -> None:
        for _ in range(len(found) if isinstance(found, list) else 1):
            block = self._blocks.popleft()
            if isinstance(block, _Block):
                self.waiting -= len(block.packed)

    def _next(self) -> list[_Block] | _Lost:
        """What is written next: the first that waits and those behind it, or what is told of those that are missing.

        The loop's thread gives us a turn only now and then when it is busy; each is used for as much as there is.
        """
        found: list[_Block] = []
        for block in self._blocks:
            if isinstance(block, _Lost):
                return found or block
            if found and block.batch.header is not None:
                break
            found.append(block)
            if block.batch.header is not None and self._begun is not block:
                break
        return found

    def _owe(self, found: "list[_Block] | _Lost") -> None:
        if isinstance(found, _Lost):
            self._owed = self._owed or _Lost(found.first_ns)
            self._owed.records += found.records
            return
        self._owed = self._owed or _Lost(found[0].batch.first_ns)
        records = sum(block.batch.records for block in found)
        self._owed.records += records
        self.lost += records

    def _tell(self, lost: _Lost) -> None:
        if self._file is None:
            self._owe(lost)
            return
        text = "the disk did not take them in time"
        self._put_line(self._lost_line(lost.records, lost.first_ns, text), lost.first_ns)

    def _write(self, blocks: list[_Block]) -> None:
        first = blocks[0]
        if first.batch.header is not None and (self._begun is not first or self._file is None):
            self._begin(first.batch)
            self._begun = first
        elif self._file is None:
            self._owe(blocks)  # without a header it could not be read
            return
        if self._owed is not None:
            self._tell(self._owed)
            self._owed = None
        parts: list[bytes] = []
        for number, (packed, raw, batch) in enumerate(blocks, self._block + 1):
            parts += (marker(number, packed, raw, batch.records, batch.first_ns, batch.last_ns), packed)
        self._put(b"".join(parts), len(blocks))
        self.records += sum(block.batch.records for block in blocks)

    def _put_line(self, line: bytes, moment_ns: int) -> None:
        self._put(pack(self._block + 1, line, 1, moment_ns, moment_ns), 1)

    def _put(self, data: bytes, blocks: int) -> None:
        """Write blocks whole or not at all."""
        assert self._file is not None
        start = os.lseek(self._file, 0, os.SEEK_END)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            if self.settings.fsync == "flush":
                os.fsync(self._file)
        except BaseException:
            self._cut(start)
            raise
        self._block += blocks
        self.file_bytes += len(data)
        self.written += len(data)

    def _cut(self, position: int) -> None:
        """Take back what was written in part; a file that refuses even that is left, its end torn."""
        assert self._file is not None
        try:
            os.ftruncate(self._file, position)
            os.lseek(self._file, position, os.SEEK_SET)
        except OSError:
            self._leave_file()

    def _begin(self, batch: Batch) -> None:
        assert batch.header is not None
        self._finish_file()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        number = self.files + 1
        path = self.folder / f"{self.name}.{number:06d}{SUFFIX}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._block = self.file_bytes = 0
        try:
            self._put_line(batch.header(number), batch.first_ns)
        except BaseException:
            self._leave_file()
            path.unlink(missing_ok=True)
            raise
        self.files = number
        self.began_secs = time.monotonic()
        self._rotating = False
        self._retain(path)

    def _leave_file(self) -> None:
        """Close the current file; the next batch with a header begins another."""
        descriptor, self._file = self._file, None
        self.began_secs = 0.0
        self._rotating = False
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

    def _finish_file(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what was written is written; the next write tells what is wrong
                if self.settings.fsync != "never":
                    os.fsync(self._file)
            self._leave_file()

    def _retain(self, current: Path) -> None:
        """Delete the oldest files beyond what the settings allow; never the current one."""
        settings = self.settings
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            try:
                status = path.stat()
            except OSError:
                continue
            found.append((status.st_mtime, path.name, status.st_size, path))
        found.sort()
        total = sum(size for _, _, size, _ in found)
        oldest = time.time() - settings.retention_days * 86_400 if settings.retention_days else 0.0
        for changed, _, size, path in found:
            if path == current:
                continue
            too_much = settings.retention_bytes and total + settings.rotate_bytes > settings.retention_bytes
            if not too_much and changed >= oldest:
                break
            try:
                path.unlink()
            except OSError:
                break
            total -= size
