"""Feeds for tests: an echoing provider, a handler that looks on, real local servers."""

import asyncio
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
from websockets.asyncio.server import serve

from relay import model
from relay.clock import Clock
from relay.feed import Feed, SharedLimits
from relay.providers.base import BaseProvider, Connect, Limits, Options, ProviderSpec, Request, Send, Shared
from relay.retry import Policy

KEY = "k3y-that-nobody-may-see"


def status(text):
    return model.Status(event="notice", text=text)


class Echo(BaseProvider):
    """Gives each frame back as a notice; what else it does is set on the class or the object by a test."""

    connect_with = Connect("ws://127.0.0.1:1/")
    hello: "tuple[Send | Request, ...]" = ()

    def connect(self):
        return self.connect_with

    def opened(self, now_ns):
        self._out += self.hello
        return ()

    def receive(self, frame):
        self.useless += frame.data == b"heartbeat"
        return (status(repr((frame.data, frame.binary))),) if frame.data != b"heartbeat" else ()

    def subscribe(self, subscriptions, now_ns):
        self._out += [Send(f"+{s.raw}") for s in subscriptions]
        return (status("subscribed"),)

    def unsubscribe(self, subscriptions, now_ns):
        self._out += [Send(f"-{s.raw}") for s in subscriptions]
        return ()

    def replied(self, reply, now_ns):
        return (status(f"{reply.tag} {reply.status} {reply.body.decode()}{reply.error}"),)

    def closed(self, now_ns):
        return (status("last words"),)


class Probe:
    """A handler that writes everything down, and lets a test wait for a condition."""

    def __init__(self):
        self.full = False
        self.frame = self.asked = None
        self.opened, self.closed, self.texts, self.outs, self.sends, self.replies, self.log = [], [], [], [], [], [], []
        self.sent_at = []
        self.flushes = 0
        self._changed = anyio.Event()
        self._room = anyio.Event()

    def _note(self, what):
        self.log.append(what)
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, condition):
        with anyio.fail_after(5):
            while not condition():
                await self._changed.wait()

    async def room(self):
        self._note("waits for room")
        while self.full:
            await self._room.wait()

    def let_go(self):
        self.full = False
        self._room.set()

    def session_opened(self, feed, provider, now_ns):
        self.opened.append(provider)
        self._note("opened")

    def outputs(self, feed, outputs, now_ns):
        assert outputs
        self.outs += outputs
        self.texts += [out.text for out in outputs if isinstance(out, model.Status)]
        self._note("outputs")

    def batch_end(self, feed):
        self.flushes += 1

    async def turn(self):
        await anyio.lowlevel.checkpoint()

    def sent(self, feed, send):
        self.sends.append(send)
        self.sent_at.append(anyio.current_time())
        self._note("sent")

    def replied(self, feed, reply, now_ns):
        self.replies.append(reply)
        self._note("replied")

    def settled(self, feed):
        self._note("settled")

    def session_closed(self, feed, error, code, reason, decision, now_ns):
        self.closed.append((error, code, reason, decision))
        self._note("closed")

    def joined(self, feed):
        return True

    @property
    def errors(self):
        return [error for error, *_ in self.closed]

    @property
    def decisions(self):
        return [decision for *_, decision in self.closed]


@asynccontextmanager
async def server(handler, **options):
    async with serve(handler, "127.0.0.1", 0, **options) as serving:
        yield f"ws://127.0.0.1:{serving.sockets[0].getsockname()[1]}/"


@asynccontextmanager
async def http_server(answer):
    """Answers each connection once; `answer` gets the request's head, gives the whole response."""

    async def handle(reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(await answer(head) if asyncio.iscoroutinefunction(answer) else answer(head))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    serving = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{serving.sockets[0].getsockname()[1]}"
    finally:
        serving.close()


def http(status, body=b"", **headers):
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{lines}connection: close\r\n\r\n".encode() + body


def make_feed(probe, provider=Echo, *, shared_limits=None, policy=None, random=lambda: 0.5, **connect):
    if connect:
        provider = type("Test", (provider,), {"connect_with": Connect(**{"ping_secs": None, **connect})})
    spec = ProviderSpec(
        "echo", "Echo", Options, provider, {}, lambda raw: (raw, None), policy=policy or Policy(0.01, 0.04, 60)
    )
    return Feed(
        name="ours",
        label="1",
        spec=spec,
        make=lambda: provider(None, (), Shared(Options(), "main")),
        clock=Clock(),
        handler=probe,
        limits=shared_limits or SharedLimits(Limits()),
        random=random,
    )


@asynccontextmanager
async def running(*feeds):
    """Runs feeds; stops them at the end, which must not take long."""
    async with anyio.create_task_group() as group:
        for feed in feeds:
            group.start_soon(feed.run)
        try:
            yield
        finally:
            with anyio.fail_after(5, shield=True):
                for feed in feeds:
                    await feed.stop()


async def silent(ws):
    await ws.wait_closed()


async def gather(ws, into):
    async for message in ws:
        into.append(message)
