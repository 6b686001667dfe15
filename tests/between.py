"""Stands between the sink and a server and looks at each command: passes it on, or gives any reply in its place."""

from collections.abc import Callable

import anyio
import anyio.abc
import hiredis

Answer = Callable[[list[bytes]], str | bytes | None]


class Between:
    """`answer`, asked for each command, decides what becomes of it:

    None: pass. Bytes: the reply, nothing is passed on. `refuse`: cut without passing it on. `cut`: pass it on, cut in
    place of the reply. `half`: give half of the reply, then cut. `hang`: pass it on and never answer.
    """

    def __init__(self, port: int, answer: Answer) -> None:
        self.port, self.answer, self.listen = port, answer, 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.listen}/1"

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        async with listener:
            self.listen = listener.extra(anyio.abc.SocketAttribute.local_port)
            task_status.started()
            await listener.serve(self._serve)

    async def _serve(self, client: anyio.abc.SocketStream) -> None:
        try:
            async with client, await anyio.connect_tcp("127.0.0.1", self.port) as server:
                requests, rest = hiredis.Reader(), b""
                async for data in client:
                    requests.feed(data)
                    while (args := requests.gets()) is not False:
                        what = self.answer(args)
                        if isinstance(what, bytes):
                            await client.send(what)
                            continue
                        if what == "refuse":
                            return
                        await server.send(hiredis.pack_command(tuple(args)))
                        while (end := _end(rest, 0)) < 0:
                            rest += await server.receive()
                        reply, rest = rest[:end], rest[end:]
                        if what == "half":
                            await client.send(reply[: len(reply) // 2])
                        if what in ("cut", "half"):
                            return
                        if what is None:
                            await client.send(reply)
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass


def _end(data: bytes, at: int) -> int:
    """Give where the reply that begins at an offset ends; -1: it is not whole."""
    line = data.find(b"\r\n", at) + 2
    if line < 2:
        return -1
    kind, rest = data[at : at + 1], data[at + 1 : line - 2]
    if kind == b"$" and int(rest) >= 0:
        line += int(rest) + 2
        return line if line <= len(data) else -1
    if kind == b"*":
        for _ in range(int(rest)):
            line = _end(data, line)
            if line < 0:
                return -1
    return line
