"""A WebSocket server that sends CoinAPI trades, or books of 20 levels, to each client, as fast as it reads or at a
rate. Never the bottleneck.

    blast.py PORT COUNT SYMBOLS [RATE [trade | book20]]

Bare asyncio and frames made beforehand. It waits for the client's `hello`, then prints `first T`, and `last T` behind
the last frame, and leaves the connection open. With a RATE each trade carries in `uuid` the time at which it was sent.
"""

import asyncio
import base64
import hashlib
import struct
import sys
import time

PORT, COUNT, SYMBOLS = (int(arg) for arg in sys.argv[1:4])
RATE = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
KIND = sys.argv[5] if len(sys.argv) > 5 else "trade"
CHUNK = 100
MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(number: int, uuid: str) -> bytes:
    when = f"2026-03-01T22:{number // 60000 % 60:02d}:{number // 1000 % 60:02d}.{number % 1000:03d}0000Z"
    if KIND == "book20":
        return wire(book(number, when))
    return wire(
        f'{{"time_exchange":"{when}","time_coinapi":"{when}","uuid":"{uuid}","price":{20000 + number % 977}.'
        f'{number % 100:02d},"size":0.{number % 9999 + 1:04d},"taker_side":"{"BUY" if number & 1 else "SELL"}",'
        f'"symbol_id":"BINANCE_SPOT_C{number % SYMBOLS:05d}_USDT","sequence":{number // SYMBOLS + 1},"type":"trade"}}'
    )


def book(number: int, when: str) -> str:
    first = 2_000_000 + number % 97_700
    asks, bids = (
        ",".join(
            f'{{"price":{(first + sign * (level + 1)) / 100:.2f},"size":{(number + 7 * level) % 9999 + 1}e-4}}'
            for level in range(20)
        )
        for sign in (1, -1)
    )
    return (
        f'{{"time_exchange":"{when}","time_coinapi":"{when}","is_snapshot":true,"asks":[{asks}],"bids":[{bids}],'
        f'"symbol_id":"BINANCE_SPOT_C{number % SYMBOLS:05d}_USDT","sequence":{number // SYMBOLS + 1},"type":"book20"}}'
    )


def wire(text: str) -> bytes:
    data = text.encode()
    return b"\x81\x7e" + struct.pack("!H", len(data)) + data


async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request = await reader.readuntil(b"\r\n\r\n")
    (key,) = [line.split(b": ")[1] for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")]
    accept = base64.b64encode(hashlib.sha1(key + MAGIC).digest())
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    await reader.read(64)  # the beginning of `hello`
    await asyncio.sleep(0.5)
    print("first", time.time(), flush=True)
    if RATE:
        start = time.perf_counter()
        for number in range(COUNT):
            ahead = start + number / RATE - time.perf_counter()
            if ahead > 0:
                await asyncio.sleep(ahead)
            writer.write(frame(number, str(time.time_ns())))
    else:
        for blob in BLOBS:
            writer.write(blob)
            await writer.drain()
    print("last", time.time(), flush=True)
    try:
        await reader.read()
    except ConnectionError:
        pass
    writer.close()


BLOBS = [] if RATE else [
    b"".join(frame(number, f"{number:032x}") for number in range(start, min(start + CHUNK, COUNT)))
    for start in range(0, COUNT, CHUNK)
]  # fmt: skip


async def main() -> None:
    server = await asyncio.start_server(client, "127.0.0.1", PORT)
    print("listening", flush=True)
    async with server:
        await server.serve_forever()


asyncio.run(main())
