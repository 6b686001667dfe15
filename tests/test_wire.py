"""The wire cuts plain frames itself: whatever comes, in whatever pieces, it gives what the library gives."""

import asyncio
import base64
import hashlib
import random
import struct
from typing import Any

import anyio
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import TEXT

from relay.feed.connection import Wire, open_wire
from relay.providers.base import Connect

BOUND = 70_000


def frame(first: int, payload: bytes, *, mask: bool = False, wide: bool = False) -> bytes:
    size = len(payload)
    bit = 0x80 if mask else 0
    if size < 126 and not wide:
        head = struct.pack("!BB", first, bit | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    return head + (b"\0\0\0\0" if mask else b"") + payload


class Server:
    """Answers one upgrade and then sends these bytes in these pieces."""

    def __init__(self, pieces: list[bytes], *, glued: bool) -> None:
        self.pieces, self.glued = pieces, glued

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        key = next(line[19:] for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        head += b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        pieces = list(self.pieces)
        if self.glued and pieces:
            head += pieces.pop(0)
        for piece in (head, *pieces):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.write_eof()
        try:
            await reader.read()
        except ConnectionError:
            pass
        writer.close()

    async def __aenter__(self) -> str:
        self.server = await asyncio.start_server(self.handle, "127.0.0.1", 0)
        return f"ws://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/"

    async def __aexit__(self, *_: Any) -> None:
        self.server.close()
        await self.server.wait_closed()


async def by_library(url: str) -> tuple[list[str | bytes], int | None]:
    got: list[str | bytes] = []
    async with connect(url, compression=None, max_size=BOUND, ping_interval=None) as connection:
        try:
            while True:
                data = await connection.recv(decode=False)
                got.append(bytes(data))
        except ConnectionClosed as closed:
            return got, closed.rcvd.code if closed.rcvd else closed.sent.code if closed.sent else None


async def by_wire(url: str) -> tuple[list[str | bytes], int | None, int]:
    got: list[str | bytes] = []
    wire = await open_wire(Connect(url, compression=False, frame_bytes_max=BOUND), lambda: 0)
    assert isinstance(wire, Wire)
    while not wire.lost or wire.waiting:
        await wire.wait()
        while wire.waiting:
            event = wire.waiting.popleft()
            got.append(bytes(event.data))
            assert event.opcode in (TEXT, 2)
    end = wire.protocol.close_exc
    code = end.rcvd.code if end.rcvd else end.sent.code if end.sent else None
    await wire.hang_up()
    return got, code, wire.seen


def scene(seed: int) -> list[bytes]:
    """A random stream of frames, right ones and now and then one that breaks the protocol."""
    chance = random.Random(seed)
    out: list[bytes] = []
    for _ in range(chance.randint(1, 60)):
        size = chance.choice((0, 1, 5, 124, 125, 126, 127, 300, 5000))
        text = bytes(chance.choice(b'abcdef{}:,"') for _ in range(size))
        kind = chance.random()
        if kind < 0.6:
            out.append(frame(chance.choice((0x81, 0x82)), text, wide=chance.random() < 0.1))
        elif kind < 0.75:
            out.append(frame(chance.choice((0x89, 0x8A)), text[:125]))
        elif kind < 0.9:
            parts = chance.randint(1, 4)
            out.append(frame(0x01, text))
            for n in range(parts):
                if chance.random() < 0.3:
                    out.append(frame(0x89, b"in between"))
                out.append(frame(0x80 if n == parts - 1 else 0x00, text))
        elif kind < 0.93:
            out.append(frame(0x81, b"x" * chance.choice((65_535, 65_536, BOUND))))
        elif kind < 0.94:
            out.append(frame(0x81, b"x" * (BOUND + 1)))
        elif kind < 0.95:
            out.append(frame(0x81, text, mask=True))
        elif kind < 0.96:
            out.append(frame(0xC1, text))  # a reserved bit
        elif kind < 0.97:
            out.append(frame(0x83, text))  # an unknown opcode
        elif kind < 0.98:
            out.append(frame(0x80, text))  # a continuation of nothing
        else:
            out.append(frame(0x88, struct.pack("!H", 1001) + b"going"))
    if chance.random() < 0.7:
        out.append(frame(0x88, struct.pack("!H", 1000)))
    elif chance.random() < 0.5:
        out[-1] = out[-1][: len(out[-1]) // 2]  # cut off in the middle
    return out


def pieces(frames: list[bytes], seed: int) -> list[bytes]:
    chance = random.Random(seed)
    data = b"".join(frames)
    if chance.random() < 0.3:
        return frames
    sizes = chance.choice(((1, 4), (1, 200), (1000, 70_000)))
    out = []
    while data:
        size = chance.randint(*sizes) if len(out) < 400 else len(data)
        out.append(data[:size])
        data = data[size:]
    return out


@pytest.mark.parametrize("block", range(4))
async def test_random_streams_give_what_the_library_gives(block: int) -> None:
    for seed in range(block * 30, block * 30 + 30):
        cut = pieces(scene(seed), seed)
        with anyio.fail_after(20):
            async with Server(cut, glued=seed % 2 == 0) as url:
                wanted, code = await by_library(url)
                got, our_code, _ = await by_wire(url)
        assert got == wanted, seed
        assert our_code == code, seed


async def test_control_frames_count_as_seen_and_are_answered() -> None:
    stream = [frame(0x81, b"a"), frame(0x89, b"ping"), frame(0x8A, b"pong"), frame(0x82, b"b")]
    async with Server([b"".join(stream)], glued=True) as url:
        got, _, seen = await by_wire(url)
    assert got == [b"a", b"b"] and seen == 4


async def test_head_of_the_answer_may_come_byte_by_byte() -> None:
    class Slow(Server):
        async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            real = writer.write

            def write(data: bytes) -> None:
                for i in range(len(data)):
                    real(data[i : i + 1])

            writer.write = write  # type: ignore[method-assign]
            await super().handle(reader, writer)

    async with Slow([frame(0x81, b"a")], glued=False) as url:
        assert (await by_wire(url))[0] == [b"a"]
