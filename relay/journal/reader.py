"""Finding journals and reading them: files to runs, runs to records in order, damage told and passed over."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from relay import records
from relay.errors import JournalError
from relay.journal.blocks import Block, Damage, read_blocks
from relay.journal.writer import SUFFIX
from relay.records import Header, Record

Tell = Callable[[Path, str], None]
"""Called with a file and one line about something wrong in it."""

_MAGIC = b"\x5a\x2a\x4d\x18"


class JournalFile(NamedTuple):
    """One file and what its header says."""

    path: Path
    header: Header
    first_ns: int
    size: int


@dataclass
class Run:
    """All files of one run of one relay, in order."""

    relay: str
    run: int
    files: list[JournalFile] = field(default_factory=list)

    @property
    def first_ns(self) -> int:
        return self.files[0].first_ns

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def is_journal(path: Path) -> bool:
    """Tell whether a path is a journal file, or a folder that holds one."""
    if path.is_dir():
        return next(path.glob(f"*{SUFFIX}"), None) is not None
    try:
        with path.open("rb") as file:
            return file.read(4) == _MAGIC
    except OSError:
        return False


def files_of(paths: Iterable[Path]) -> list[Path]:
    """List the journal files that paths name, folders opened; each once. Raises: JournalError."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(path.glob(f"*{SUFFIX}"))
            if not inside:
                raise JournalError(f"{path}: no recording in this folder (files end with {SUFFIX})")
            found.update(dict.fromkeys(inside))
        elif path.exists():
            found[path] = None
        else:
            raise JournalError(f"{path}: there is no such file or folder")
    return list(found)


def open_file(path: Path) -> JournalFile:
    """Read the header of a file. Raises: JournalError where it has none that can be read."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            first = next(read_blocks(file), None)
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from None
    if not isinstance(first, Block):
        raise JournalError(f"{path}: no header can be read{f' ({first})' if first else ': it is empty'}")
    try:
        record = records.decode_lines(first.lines)[0]
        header: Header = records.data_of(record, Header)
    except (msgspec.MsgspecError, IndexError) as error:
        raise JournalError(f"{path}: its header cannot be read: {error}") from None
    if record.do != "header" or header.format > records.FORMAT:
        raise JournalError(
            f"{path}: format {header.format}, written by version {header.version}; this one reads {records.FORMAT}"
        )
    return JournalFile(path, header, first.first_ns, size)


def runs_of(paths: Iterable[Path], tell: Tell) -> list[Run]:
    """Group files into runs, oldest first. A file without a header is told and left out.

    Raises: JournalError where nothing is left.
    """
    runs: dict[tuple[str, int], Run] = {}
    why = ""
    for path in files_of(paths):
        try:
            file = open_file(path)
        except JournalError as error:
            why = str(error)
            tell(path, why.removeprefix(f"{path}: ") + "; the file is left out")
            continue
        key = (file.header.relay, file.header.run)
        runs.setdefault(key, Run(*key)).files.append(file)
    if not runs:
        raise JournalError(why or "no recording")
    for run in runs.values():
        run.files.sort(key=lambda file: file.header.file)
    return sorted(runs.values(), key=lambda run: run.first_ns)


class Overview(NamedTuple):
    """What the markers of a file say of it."""

    records: int
    raw: int
    first_ns: int
    last_ns: int
    damages: list[Damage]


def overview(path: Path, *, whole: bool = False) -> Overview:
    """Look through a file's markers; `whole`: unpack every block too. Raises: JournalError."""
    count = raw = last = 0
    first: int | None = None
    damages = []
    try:
        with path.open("rb") as file:
            for block in read_blocks(file, lines=whole):
                if isinstance(block, Damage):
                    damages.append(block)
                    continue
                if whole:
                    try:
                        found = len(records.decode_lines(block.lines))
                    except msgspec.MsgspecError as error:
                        found, why = -1, f"block {block.number} holds no records ({error})"
                    else:
                        why = f"block {block.number} holds {found} records, not {block.records}"
                    if found != block.records:
                        damages.append(Damage(block.start, block.start + block.packed, 1, block.records, why))
                        continue
                first = block.first_ns if first is None else first
                count, raw, last = count + block.records, raw + block.raw, block.last_ns
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from None
    return Overview(count, raw, first or 0, last, damages)


def read_records(path: Path, tell: Tell, *, passed: Callable[[int], None] | None = None) -> Iterator[Record]:
    """Read the records of one file; what is damaged is told and passed over.

    `passed` is called with the bytes of each block read. Raises: JournalError where the file cannot be read at all.
    """
    try:
        with path.open("rb") as file:
            for block in read_blocks(file):
                if isinstance(block, Damage):
                    tell(path, str(block))
                    continue
                try:
                    found = records.decode_lines(block.lines)
                except msgspec.MsgspecError as error:
                    tell(path, f"block {block.number} holds no records ({error}), {block.records} records lost")
                    continue
                if passed is not None:
                    passed(block.packed)
                yield from found
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from None
