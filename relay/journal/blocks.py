"""The bytes of a journal file: blocks, each a marker and a zstd frame of whole JSON lines.

The marker is a zstd skippable frame, which every zstd tool passes over: it holds the block's number, sizes, times and
checksums, and its own. What does not fit its marker is damage: it is told with its place, and reading goes on at the
next marker.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple
from zlib import crc32

from relay.zst import zstd

LEVEL = -4
"""Frames are repetitive text: -4 leaves a tenth of their size and costs a quarter less than 1, whose files
were two thirds as large."""
BLOCK_BYTES_MAX = 64 * 1024 * 1024
"""Longest block that a reader believes in, before and behind compression; one received frame is 4 MiB at most, but a
REST reply may have 32 MiB."""

_SKIPPABLE = 0x184D2A5A
_TAG = b"relayjn1"
# magic, size of the rest, tag, number, bytes packed and unpacked, records, crc of the packed bytes, first and last t
_MARKER = struct.Struct("<II8sIIIIIqq")
_CRC = struct.Struct("<I")
MARKER_BYTES = _MARKER.size + _CRC.size
_BEGIN = struct.pack("<II8s", _SKIPPABLE, MARKER_BYTES - 8, _TAG)
_SCAN_BYTES = 64 * 1024


class Block(NamedTuple):
    """One block as read."""

    number: int
    """From 1 within the file, without holes."""
    records: int
    first_ns: int
    last_ns: int
    start: int
    """Where it begins in the file."""
    packed: int
    """Bytes in the file, marker included."""
    raw: int
    lines: bytes
    """The JSON lines; empty where only markers were asked for."""


class Damage(NamedTuple):
    """A stretch of a file that cannot be used."""

    start: int
    end: int
    blocks: int
    """Blocks lost there; 0 where that is not known."""
    records: int
    """Records lost, as far as their number is known."""
    why: str
    torn: bool = False
    """It is the end of the file: recording was cut there, or goes on."""

    def __str__(self) -> str:
        lost = f", {self.records} records lost" if self.records else ", at least one block lost" if self.blocks else ""
        return f"bytes {self.start} to {self.end}: {self.why}{lost}"


def new_compressor() -> zstd.ZstdCompressor:
    """Make a compressor for `compress`; using one again and again saves a fifth of its time."""
    return zstd.ZstdCompressor(
        options={zstd.CompressionParameter.compression_level: LEVEL, zstd.CompressionParameter.checksum_flag: 1}
    )


def pack(
    number: int,
    lines: bytes,
    records: int,
    first_ns: int,
    last_ns: int,
) -> bytes:
    """Give the bytes of one block."""
    packed = compress(lines, new_compressor())
    return marker(number, packed, len(lines), records, first_ns, last_ns) + packed


def compress(lines: bytes, compressor: zstd.ZstdCompressor) -> bytes:
    """Give the zstd frame of a block."""
    compressor.set_pledged_input_size(len(lines))
    return compressor.compress(lines, zstd.ZstdCompressor.FLUSH_FRAME)


def marker(number: int, packed: bytes, raw: int, records: int, first_ns: int, last_ns: int) -> bytes:
    """Give what stands before a block's zstd frame; `raw`: bytes of its lines."""
    found = _MARKER.pack(
        _SKIPPABLE, MARKER_BYTES - 8, _TAG, number, len(packed), raw, records, crc32(packed), first_ns, last_ns
    )
    return found + _CRC.pack(crc32(found))


def read_blocks(file: BinaryIO, *, lines: bool = True) -> Iterator[Block | Damage]:
    """Read a file from its beginning: good blocks, and in their place what is damaged. Never raises for its content.

    `lines` false: believe the markers, unpack nothing (damage inside a block is not found then).
    """
    position = number = 0
    size = file.seek(0, 2)
    while position < size:
        file.seek(position)
        head = file.read(MARKER_BYTES)
        found = _marker(head)
        if found is None:
            end = _next(file, position + 1, size)
            why = "no marker of a block" if len(head) == MARKER_BYTES else "a torn marker"
            lost = _lost(file, position, end, size, number, why)
            yield lost
            number += lost.blocks
            position = end
            continue
        mine, packed, raw, records, crc, first_ns, last_ns = found
        end = position + MARKER_BYTES + packed
        if mine > number + 1 and number:
            yield Damage(position, position, mine - number - 1, 0, f"blocks {number + 1} to {mine - 1} are missing")
        if end > size:
            after = _next(file, position + 1, size)
            yield Damage(position, after, 1, records, f"block {mine} is torn", torn=after == size)
            position = after
            number = mine
            continue
        data = b""
        why = ""
        if lines:
            body = file.read(packed)
            if crc32(body) != crc:
                why = "its checksum is wrong"
            else:
                data, why = _unpack(body, raw)
        if why:
            yield Damage(position, end, 1, records, f"block {mine}: {why}")
        else:
            yield Block(mine, records, first_ns, last_ns, position, MARKER_BYTES + packed, raw, data)
        number = mine
        position = end


def _marker(head: bytes) -> tuple[int, int, int, int, int, int, int] | None:
    if len(head) < MARKER_BYTES or not head.startswith(_BEGIN):
        return None
    if _CRC.unpack_from(head, _MARKER.size)[0] != crc32(head[: _MARKER.size]):
        return None
    _, _, _, number, packed, raw, records, crc, first_ns, last_ns = _MARKER.unpack_from(head)
    if packed > 2 * BLOCK_BYTES_MAX or raw > 2 * BLOCK_BYTES_MAX:
        return None
    return number, packed, raw, records, crc, first_ns, last_ns


def _unpack(body: bytes, raw: int) -> tuple[bytes, str]:
    """Give the lines and "", or what is wrong."""
    try:
        decompressor = zstd.ZstdDecompressor()
        data = decompressor.decompress(body, raw + 1)
    except (zstd.ZstdError, MemoryError, ValueError) as error:
        return b"", f"it cannot be unpacked ({error})"
    if len(data) != raw or not decompressor.eof or decompressor.unused_data or not data.endswith(b"\n"):
        return b"", "it is not what its marker says"
    return data, ""


def _next(file: BinaryIO, start: int, size: int) -> int:
    """Find the next marker from `start` on; the end of the file where there is none."""
    position = start
    while position < size:
        file.seek(position)
        chunk = file.read(_SCAN_BYTES + MARKER_BYTES)
        at = chunk.find(_BEGIN)
        while at >= 0:
            whole = chunk[at : at + MARKER_BYTES]
            if _marker(whole) is not None:
                return position + at
            at = chunk.find(_BEGIN, at + 1)
        position += _SCAN_BYTES
    return size


def _lost(file: BinaryIO, start: int, end: int, size: int, number: int, why: str) -> Damage:
    """Describe a stretch without a marker; the next block's number tells how many blocks stood there."""
    if end >= size:
        return Damage(start, size, 1, 0, why, torn=True)
    file.seek(end)
    found = _marker(file.read(MARKER_BYTES))
    blocks = found[0] - number - 1 if found else 0
    return Damage(start, end, max(blocks, 1), 0, why)
