"""Sessions against real local servers: drop, refuse, stall, slow reader, text and binary, limits, REST, stop."""

import asyncio
import contextlib
import logging
import shutil
import socket
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime

import anyio
import anyio.lowlevel
import pytest
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from relay import model
from relay.clock import Clock
from relay.errors import HandshakeRefused, SessionError, SessionStale
from relay.feed import BATCH_FRAMES, Feed, SharedLimits, connection, session
from relay.feed.limits import Window
from relay.providers.base import (
    BaseProvider,
    Connect,
    Limits,
    Options,
    ProviderSpec,
    Reply,
    Request,
    Send,
    Shared,
    Subscription,
)
from relay.retry import Decision, Policy

KEY = "k3y-that-nobody-may-see"


@pytest.fixture(autouse=True)
def quick_ticks(monkeypatch):
    monkeypatch.setattr(session, "TICK_SECS", 0.02)


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


# -- frames --------------------------------------------------------------------------------------------------------


async def test_text_and_binary_frames_come_whole_in_order_and_are_counted():
    async def handler(ws):
        await ws.send("text")
        await ws.send(b"\x00binary")
        await ws.send(["in ", "three ", "parts"])
        await ws.send([b"\x00", b"\x01"])
        await ws.send("heartbeat")
        await ws.send("")
        await ws.wait_closed()

    probe = Probe()
    async with server(handler) as url:
        feed = make_feed(probe, url=url)
        async with running(feed):
            await probe.until(lambda: len(probe.texts) == 5)
            assert feed.live
            expected = [(b"text", False), (b"\x00binary", True), (b"in three parts", False), (b"\x00\x01", True)]
            assert probe.texts == [repr(item) for item in [*expected, (b"", False)]]
            stats = feed.stats
            assert (stats.frames, stats.useless, stats.connects, stats.opened) == (6, 1, 1, 1)
            assert stats.bytes == sum(len(data) for data, _ in expected) + len("heartbeat")
    assert not feed.live


@pytest.mark.parametrize("compression", [True, False])
async def test_a_burst_comes_through_whole_and_lets_other_tasks_have_turns(compression):
    count = 20 * BATCH_FRAMES
    turns_at = []

    async def handler(ws):
        for index in range(count):
            await ws.send(f"frame {index}")
        await ws.wait_closed()

    async def others(feed):
        while feed.stats.frames < count:
            turns_at.append(feed.stats.frames)
            await asyncio.sleep(0)

    probe = Probe()
    async with server(handler) as url:
        feed = make_feed(probe, url=url, compression=compression)
        async with running(feed):
            with anyio.fail_after(5):
                await others(feed)
            assert probe.texts == [repr((f"frame {index}".encode(), False)) for index in range(count)]
            assert probe.flushes >= 20
            assert max(b - a for a, b in zip(turns_at, turns_at[1:], strict=False)) <= BATCH_FRAMES


async def test_stamps_are_taken_from_the_clock_once_a_frame_and_the_journal_sees_it_first():
    stamps = iter(range(1_000, 2_000))
    seen = []

    async def handler(ws):
        await ws.send("a")
        await ws.send(b"b")
        await ws.wait_closed()

    class Stamped(Echo):
        def receive(self, frame):
            seen.append(("decoded", frame))
            return ()

        def tick(self, now_ns):
            raise AssertionError("not in this test")

    probe = Probe()
    probe.frame = lambda feed: lambda frame: seen.append(("journal", frame)) or probe._note("journal")
    async with server(handler) as url:
        feed = make_feed(probe, Stamped, url=url)
        feed._clock = lambda: next(stamps)
        async with running(feed):
            await probe.until(lambda: len(seen) == 4)
    assert [kind for kind, _ in seen] == ["journal", "decoded"] * 2
    assert seen[0][1] is seen[1][1] and (seen[0][1].data, seen[0][1].binary) == (b"a", False)
    assert seen[2][1] is seen[3][1] and (seen[2][1].data, seen[2][1].binary) == (b"b", True)
    assert seen[2][1].received_ns == seen[0][1].received_ns + 1


async def test_a_full_handler_stops_the_reading_and_nothing_is_lost_or_called_dead():
    count = 50 * BATCH_FRAMES

    async def handler(ws):
        for index in range(count):
            await ws.send(f"{index:0200}")
        await ws.wait_closed()

    probe = Probe()
    probe.full = True
    async with server(handler, compression=None) as url:
        feed = make_feed(probe, url=url, silence_secs=0.1, ping_secs=0.05, pong_secs=0.1, compression=False)
        async with running(feed):
            await probe.until(lambda: "waits for room" in probe.log)
            await anyio.sleep(0.4)  # longer than the silence and the pong may last
            assert feed.stats.frames == 0 and not probe.closed
            assert len(feed._life.session.wire.waiting) < count  # the rest waits in the kernel and at the sender
            probe.let_go()
            await probe.until(lambda: len(probe.texts) == count)
            assert probe.texts[-1] == repr((f"{count - 1:0200}".encode(), False))


async def test_a_frame_above_the_bound_ends_the_session_with_its_size_named():
    async def handler(ws):
        await ws.send("small")
        await ws.send("x" * 2000)
        await ws.wait_closed()

    probe = Probe()
    async with server(handler) as url:
        async with running(make_feed(probe, url=url, frame_bytes_max=1000)):
            await probe.until(lambda: len(probe.closed) == 2)
    assert probe.errors[0].code == "frame_too_large" and "more than 1000 bytes" in probe.errors[0].text
    assert probe.decisions[0].kind == "retry"
    assert probe.texts[:2] == ["(b'small', False)", "last words"]


async def test_endless_empty_fragments_end_the_session(monkeypatch):
    monkeypatch.setattr(connection, "FRAGMENTS_MAX", 10)

    async def handler(ws):
        await ws.send("" for _ in range(1000))

    probe = Probe()
    async with server(handler) as url:
        async with running(make_feed(probe, url=url)):
            await probe.until(lambda: probe.closed)
    assert probe.errors[0].code == "frame_too_large" and "fragments" in probe.errors[0].text


# -- faults of the provider's code ---------------------------------------------------------------------------------


async def test_a_fault_in_receive_becomes_a_reject_and_the_session_lives(caplog):
    async def handler(ws):
        for text in ("good", "bad", "bad", "good"):
            await ws.send(text)
        await ws.wait_closed()

    class Faulty(Echo):
        def receive(self, frame):
            if frame.data == b"bad":
                raise KeyError("oops")
            return super().receive(frame)

    probe = Probe()
    async with server(handler) as url:
        feed = make_feed(probe, Faulty, url=url)
        async with running(feed):
            await probe.until(lambda: len(probe.outs) == 4)
            assert not probe.closed
    rejects = [out for out in probe.outs if isinstance(out, model.Reject)]
    assert [(r.reason, r.detail, r.frame, r.account) for r in rejects] == [
        ("internal", "KeyError: 'oops'", "bad", None)
    ] * 2
    assert feed.stats.internal == 2
    assert len([r for r in caplog.records if r.name == "relay.feed"]) == 1  # one log line, not one a frame


async def test_a_fault_on_an_account_connection_is_rejected_to_the_account():
    async def handler(ws):
        await ws.send("my order")
        await ws.wait_closed()

    class Faulty(Echo):
        def __init__(self, options, subscriptions, shared):
            super().__init__(options, [Subscription("orders", "")], shared)

        def receive(self, frame):
            raise ValueError

    probe = Probe()
    async with server(handler) as url:
        async with running(make_feed(probe, Faulty, url=url)):
            await probe.until(lambda: probe.outs)
    assert probe.outs[0].account == "main"


async def test_a_fault_in_tick_is_told_once_and_the_session_lives():
    ticks = []

    class Faulty(Echo):
        def tick(self, now_ns):
            ticks.append(now_ns)
            probe._note("tick")
            raise ZeroDivisionError("tick")

    probe = Probe()
    async with server(silent) as url:
        async with running(make_feed(probe, Faulty, url=url)):
            await probe.until(lambda: len(ticks) > 5)
            assert not probe.closed
            assert [(r.reason, r.detail) for r in probe.outs] == [("internal", "ZeroDivisionError: tick")]


async def test_a_fault_in_opened_ends_the_session_and_is_retried_with_rising_delays():
    class Faulty(Echo):
        def opened(self, now_ns):
            raise RuntimeError("cannot open")

    probe = Probe()
    async with server(silent) as url:
        async with running(make_feed(probe, Faulty, url=url)):
            await probe.until(lambda: len(probe.closed) == 3)
    assert {error.code for error in probe.errors[:3]} == {"internal"}
    assert [d.delay_secs for d in probe.decisions[:3]] == [0.0, 0.005, 0.01]


async def test_faults_in_to_send_and_closed_end_the_session_and_nothing_else():
    async def handler(ws):
        await ws.send("x")
        await ws.wait_closed()

    class Faulty(Echo):
        def to_send(self):
            raise RuntimeError("nothing to send with")

        def closed(self, now_ns):
            raise RuntimeError("no last words")

    probe = Probe()
    async with server(handler) as url:
        async with running(make_feed(probe, Faulty, url=url)):
            await probe.until(lambda: len(probe.closed) == 2)
    assert [error.code for error in probe.errors[:2]] == ["internal", "internal"]
    assert "nothing to send with" in probe.errors[0].text
    assert "RuntimeError: no last words" in [out.detail for out in probe.outs if isinstance(out, model.Reject)]


async def test_a_fault_in_connect_is_an_end_like_any_other():
    class Faulty(Echo):
        def connect(self):
            raise RuntimeError("no address")

    probe = Probe()
    async with running(make_feed(probe, Faulty)):
        await probe.until(lambda: probe.closed)
    assert probe.errors[0].code == "internal" and "no address" in probe.errors[0].text and not probe.opened


async def test_an_error_of_the_handler_is_not_swallowed():
    async def handler(ws):
        await ws.send("x")
        await ws.wait_closed()

    def broken(*_):
        raise OSError("disk full")

    probe = Probe()
    probe.outputs = broken
    async with server(handler) as url:
        with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="disk full"), flatten_subgroups=True):
            with anyio.fail_after(5):
                await make_feed(probe, url=url).run()


# -- ends ----------------------------------------------------------------------------------------------------------


async def test_a_session_error_ends_the_session_and_a_new_object_begins_the_next():
    async def handler(ws):
        await ws.send("first")
        await ws.send("end")
        await ws.send("never read")
        await ws.wait_closed()

    class Ending(Echo):
        def receive(self, frame):
            if frame.data == b"end":
                raise SessionError("enough", code="17", action="retry")
            return super().receive(frame)

    probe = Probe()
    async with server(handler) as url:
        feed = make_feed(probe, Ending, url=url)
        async with running(feed):
            await probe.until(lambda: len(probe.closed) == 2)
    assert probe.opened[0] is not probe.opened[1]
    assert probe.errors[0].text == "enough" and probe.decisions[0].kind == "retry"
    assert probe.texts[:4] == ["(b'first', False)", "last words"] * 2
    assert feed.stats.ended["17"] >= 2 and feed.stats.ending >= 2


@pytest.mark.parametrize(
    ("code", "error", "kind"),
    [
        (1000, None, "retry"),
        (1001, None, "retry"),
        (1008, "close_1008", "slow"),
        (1011, "close_1011", "retry"),
        (1012, "close_1012", "retry"),
        (4001, "close_4001", "retry"),
    ],
)
async def test_close_codes_and_what_follows(code, error, kind):
    async def handler(ws):
        await ws.send("last frame")
        await ws.close(code, f"because of {KEY}")

    probe = Probe()
    async with server(handler) as url:
        async with running(make_feed(probe, url=url, headers={"x-key": KEY})):
            await probe.until(lambda: probe.closed)
    ended, got, reason, decision = probe.closed[0]
    assert (ended.code if ended else None, got, decision.kind) == (error, code, kind)
    assert reason == "because of ***"
    assert probe.texts[0] == "(b'last frame', False)"  # what came before the close is read


async def test_a_connection_that_breaks_off_is_1006_and_read_to_its_end():
    async def handler(ws):
        for index in range(300):
            await ws.send(str(index))
        ws.transport.write_eof()
        ws.transport.close()

    probe = Probe()
    async with server(handler, compression=None) as url:
        async with running(make_feed(probe, url=url)):
            await probe.until(lambda: probe.closed)
    error, code, _, decision = probe.closed[0]
    assert (error.code, code, decision.kind) == ("close_1006", 1006, "retry")
    assert probe.texts[299] == "(b'299', False)"


async def test_a_server_that_accepts_and_closes_is_met_with_rising_delays():
    async def handler(ws):
        await ws.close()

    probe = Probe()
    async with server(handler) as url:
        async with running(make_feed(probe, url=url, random=lambda: 0.9, policy=Policy(0.01, 0.05))):
            await probe.until(lambda: len(probe.closed) == 6)
    assert [round(d.delay_secs, 4) for d in probe.decisions[:6]] == [0, 0.009, 0.018, 0.036, 0.045, 0.045]


async def test_only_data_and_time_make_a_session_healthy(monkeypatch):
    monkeypatch.setattr(session, "HEALTHY_SECS", 0.1)
    rounds = []

    async def handler(ws):
        rounds.append(1)
        await ws.send("data" if len(rounds) > 2 else "heartbeat")
        await anyio.sleep(0.2)
        await ws.close()

    class Quotes(Echo):
        def receive(self, frame):
            return (model.Quote(bid="1"),) if frame.data == b"data" else super().receive(frame)

    probe = Probe()
    async with server(handler) as url:
        async with running(make_feed(probe, Quotes, url=url)):
            await probe.until(lambda: len(probe.closed) == 4)
    assert [d.attempt for d in probe.decisions[:4]] == [1, 2, 1, 1]


async def test_a_long_quiet_session_is_healthy_too(monkeypatch):
    monkeypatch.setattr(session, "QUIET_HEALTHY_SECS", 0.1)

    async def handler(ws):
        await anyio.sleep(0.2)
        await ws.close()

    probe = Probe()
    async with server(handler) as url:
        async with running(make_feed(probe, url=url)):
            await probe.until(lambda: len(probe.closed) == 2)
    assert [d.attempt for d in probe.decisions[:2]] == [1, 1]


async def test_a_fatal_end_is_the_last_one():
    class Refused(Echo):
        def opened(self, now_ns):
            raise HandshakeRefused("bad key", code="auth", action="fatal")

    probe = Probe()
    async with server(silent) as url:
        feed = make_feed(probe, Refused, url=url)
        with anyio.fail_after(5):
            await feed.run()
            await feed.stop()
    assert feed.decision.kind == "fatal" and len(probe.closed) == 1


async def test_where_one_connection_is_allowed_the_old_one_is_closed_before_the_new_one_is_opened():
    probe, limits = Probe(), SharedLimits(Limits(connections_max=1))
    async with server(silent) as url:
        async with running(make_feed(probe, url=url, renew_secs=0.2, shared_limits=limits)):
            await probe.until(lambda: len(probe.opened) == 2)
            assert probe.log.index("closed") < len(probe.log) - probe.log[::-1].index("opened") - 1
    assert probe.errors[0].code == "renewed" and probe.decisions[0].delay_secs == 0


class Rolling(Echo):
    """Data come from the first frame on; `renew` is set by the test."""

    def receive(self, frame):
        return (model.Quote(raw_symbol="A", bid=frame.data.decode()),)


async def numbers(ws):
    for index in range(10_000):
        await ws.send(str(index))
        await anyio.sleep(0.005)


async def test_a_session_to_be_renewed_goes_on_until_the_new_one_has_taken_over(monkeypatch):
    monkeypatch.setattr("relay.feed.feed.OVERLAP_SECS", 0.1)
    probe, codes = Probe(), []

    async def handler(ws):
        with contextlib.suppress(ConnectionClosed):
            await numbers(ws)
        codes.append(ws.close_code)

    async with server(handler) as url:
        feed = make_feed(probe, Rolling, url=url)
        async with running(feed):
            await probe.until(lambda: probe.outs)
            old = feed.provider
            old.renew = True
            await probe.until(lambda: len(probe.opened) == 2)
            assert not probe.closed and feed.provider is old
            await probe.until(lambda: probe.closed)
            assert probe.closed == [(None, 1000, "", Decision("joined", 0.0, 0))] and feed.live
            assert feed.provider is probe.opened[1]
        assert len(probe.closed) == 2
    assert codes == [1000, 1000]
    assert feed.stats.frames == feed.stats.gave and feed.stats.useless == 0


@pytest.mark.parametrize("fatal", [False, True])
async def test_a_new_session_that_is_refused_leaves_the_old_one_in_peace(fatal):
    probe, refuse = Probe(), []

    async def refused(connection, request):
        return connection.respond(401 if fatal else 503, "") if refuse else None

    async with server(numbers, process_request=refused) as url:
        feed = make_feed(probe, Rolling, url=url)
        async with running(feed):
            await probe.until(lambda: probe.outs)
            refuse.append(True)
            old = feed.provider
            old.renew = True
            await probe.until(lambda: len(probe.closed) >= (1 if fatal else 3))
            count = len(probe.outs)
            await probe.until(lambda: len(probe.outs) > count + 20)
            assert feed.provider is old and feed.live and len(probe.opened) == 1
            kinds = {decision.kind for decision in probe.decisions}
            assert kinds == ({"fatal"} if fatal else {"retry"})
            if fatal:
                assert len(probe.closed) == 1 and feed.stats.connects == 2, "it is not asked again"
                return
            refuse.clear()
            await probe.until(lambda: feed.provider is not old)


async def test_the_new_session_takes_over_at_once_when_the_old_one_breaks_off():
    probe, open_ones = Probe(), []

    async def handler(ws):
        open_ones.append(ws)
        if len(open_ones) == 1:
            await numbers(ws)
        await ws.wait_closed()  # the second one says nothing, so it proves nothing

    async with server(handler) as url:
        feed = make_feed(probe, Rolling, url=url)
        async with running(feed):
            await probe.until(lambda: probe.outs)
            feed.provider.renew = True
            await probe.until(lambda: len(probe.opened) == 2)
            open_ones[0].transport.abort()
            await probe.until(lambda: probe.closed)
            assert probe.decisions == [Decision("replaced", 0.0, 0)] and feed.provider is probe.opened[1]
            await anyio.lowlevel.checkpoint()
            assert len(probe.opened) == 2


async def test_an_old_session_that_breaks_off_before_the_new_one_is_open_is_an_ordinary_end():
    probe, hold = Probe(), anyio.Event()
    open_ones = []

    async def held(connection, request):
        if open_ones and not hold.is_set():
            await hold.wait()

    async def handler(ws):
        open_ones.append(ws)
        await numbers(ws)

    async with server(handler, process_request=held) as url:
        feed = make_feed(probe, Rolling, url=url)
        async with running(feed):
            await probe.until(lambda: probe.outs)
            feed.provider.renew = True
            with anyio.fail_after(5):
                while feed.stats.connects < 2:  # noqa: ASYNC110 -- nobody is told of a try
                    await anyio.sleep(0.01)
            open_ones[0].transport.abort()
            await probe.until(lambda: probe.closed)
            assert probe.decisions[0].kind == "retry"
            hold.set()
            await probe.until(lambda: len(probe.opened) == 2)


async def test_what_is_subscribed_during_a_rollover_goes_to_both_and_stop_ends_both():
    probe = Probe()
    async with server(numbers) as url:
        feed = make_feed(probe, Rolling, url=url)
        async with running(feed):
            await probe.until(lambda: probe.outs)
            feed.provider.renew = True
            await probe.until(lambda: len(probe.opened) == 2)
            feed.subscribe([Subscription("quotes", "B")])
            await probe.until(lambda: len(probe.sends) == 2)
        assert [one.data for one in probe.sends] == ["+B", "+B"]
        assert [decision for *_, decision in probe.closed] == [None, None]
        assert not feed.live


# -- silence -------------------------------------------------------------------------------------------------------


async def test_silence_ends_the_session():
    probe = Probe()
    async with server(silent, ping_interval=None) as url:
        async with running(make_feed(probe, url=url, silence_secs=0.1)):
            await probe.until(lambda: probe.closed)
    assert isinstance(probe.errors[0], SessionStale) and probe.errors[0].code == "silence"


async def test_pings_and_pongs_break_the_silence():
    probe = Probe()
    async with server(silent, ping_interval=None) as url:
        feed = make_feed(probe, url=url, silence_secs=0.15, ping_secs=0.05)
        async with running(feed):
            with anyio.fail_after(5):
                await probe.until(lambda: probe.opened)
                await anyio.sleep(0.5)
            assert feed.live and not probe.closed


async def test_a_peer_that_does_not_answer_pings_is_dead():
    async def deaf(ws):
        ws.transport.pause_reading()
        for _ in range(100):
            await ws.send("still talking")
            await anyio.sleep(0.02)

    probe = Probe()
    async with server(deaf, ping_interval=None, close_timeout=0.1) as url:
        async with running(make_feed(probe, url=url, silence_secs=10, ping_secs=0.05, pong_secs=0.1)):
            await probe.until(lambda: probe.closed)
    assert isinstance(probe.errors[0], SessionStale) and probe.errors[0].code == "pong"


# -- refusals ------------------------------------------------------------------------------------------------------

LATER = format_datetime(datetime.fromtimestamp(2_000_000_000, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("answer", "headers", "kind", "least"),
    [
        (401, {}, "fatal", 0),
        (403, {}, "fatal", 0),
        (429, {"Retry-After": "7"}, "slow", 7),
        (429, {}, "slow", 60),
        (418, {"Retry-After": LATER}, "slow", 86_400),
        (404, {}, "slow", 60),
        (500, {}, "retry", 0),
        (503, {"Retry-After": "3"}, "slow", 3),
        (503, {"Retry-After": "soon"}, "retry", 0),
        (200, {}, "retry", 0),
    ],
)
async def test_a_refused_upgrade_and_what_follows(answer, headers, kind, least):
    def refuse(ws, request):
        response = ws.respond(answer, f"no entry for\n{KEY}")
        for name, value in headers.items():
            response.headers[name] = value
        return response

    probe = Probe()
    async with server(silent, process_request=refuse) as url:
        async with running(make_feed(probe, url=f"{url}?token={KEY}")):
            await probe.until(lambda: probe.closed)
    error, code, _, decision = probe.closed[0]
    assert (error.code, code, decision.kind) == (f"http_{answer}", None, kind)
    assert least <= decision.delay_secs <= least * 1.25
    assert error.text.startswith("127.0.0.1:") and error.text.endswith(f"refused with HTTP {answer}: no entry for ***")
    assert not probe.opened


async def test_a_redirect_to_another_origin_is_not_followed():
    reached = []

    async def elsewhere(ws):
        reached.append(ws.request.headers)

    async with server(elsewhere) as other:

        def away(ws, request):
            response = ws.respond(302, "")
            response.headers["Location"] = f"{other}?token={KEY}"
            return response

        probe = Probe()
        async with server(silent, process_request=away) as url:
            async with running(make_feed(probe, url=url, headers={"x-api-key": KEY})):
                await probe.until(lambda: probe.closed)
    assert not reached
    assert probe.errors[0].code == "redirect" and "another origin" in probe.errors[0].text
    assert KEY not in probe.errors[0].text and probe.decisions[0].kind == "slow"


async def test_a_redirect_within_the_origin_is_followed():
    def move(ws, request):
        if request.path != "/v2":
            response = ws.respond(307, "")
            response.headers["Location"] = "/v2"
            return response
        return None

    probe = Probe()
    async with server(silent, process_request=move) as url:
        async with running(make_feed(probe, url=url)):
            await probe.until(lambda: probe.opened)


async def test_nobody_listening_and_an_unknown_name_are_said_in_one_line(monkeypatch):
    probe = Probe()
    async with server(silent) as url:
        pass  # closed again: nobody listens there
    async with running(make_feed(probe, url=url)):
        await probe.until(lambda: probe.closed)
    refused = probe.errors[0]
    assert refused.code == "connect" and refused.text.endswith(": connection refused")

    def unknown_name(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown_name)  # a resolver may take its time
    probe = Probe()
    async with running(make_feed(probe, url=f"ws://no-such-host.invalid/?token={KEY}")):
        await probe.until(lambda: probe.closed)
    unknown = probe.errors[0]
    assert unknown.code == "dns" and unknown.text.startswith("no-such-host.invalid: the name was not found")
    assert KEY not in unknown.text and "\n" not in unknown.text


async def test_tls_that_fails_is_said_in_one_line():
    async def plain_text(reader, writer):
        writer.write(b"220 this is no TLS\r\n")
        await reader.read()
        writer.close()

    probe = Probe()
    async with await asyncio.start_server(plain_text, "127.0.0.1", 0) as serving:
        port = serving.sockets[0].getsockname()[1]
        async with running(make_feed(probe, url=f"wss://127.0.0.1:{port}/")):
            await probe.until(lambda: probe.closed)
    assert probe.errors[0].code == "tls" and probe.decisions[0].kind == "retry"
    assert "\n" not in probe.errors[0].text


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
async def test_a_certificate_that_nobody_signed_is_not_accepted(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
    await anyio.run_process(command)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    probe = Probe()
    async with server(silent, ssl=context) as url:
        async with running(make_feed(probe, url=url.replace("ws:", "wss:"))):
            await probe.until(lambda: probe.closed)
    assert probe.errors[0].code == "tls" and "its certificate is not accepted: self" in probe.errors[0].text


async def test_a_server_that_does_not_answer_meets_the_deadline():
    async def never(head):
        await anyio.sleep(30)
        return b""

    probe = Probe()
    async with http_server(never) as place:
        async with running(make_feed(probe, url=f"ws://{place}/", open_secs=0.1)):
            await probe.until(lambda: probe.closed)
    assert probe.errors[0].code == "open_timeout" and "within 0.1 s" in probe.errors[0].text


async def test_an_address_that_is_none_is_fatal():
    probe = Probe()
    with anyio.fail_after(5):
        await make_feed(probe, url="http://127.0.0.1:1/").run()
    assert probe.errors[0].code == "url" and probe.decisions[0].kind == "fatal"


async def test_no_log_line_holds_a_key(caplog):
    async def handler(ws):
        async for message in ws:
            await ws.send(message)

    caplog.set_level(logging.DEBUG)
    probe = Probe()
    hello = type("Hello", (Echo,), {"hello": (Send(f"login {KEY}"),)})
    async with server(handler, logger=logging.getLogger("the.provider")) as url:
        async with running(make_feed(probe, hello, url=f"{url}?token={KEY}", headers={"x-api-key": KEY})):
            await probe.until(lambda: probe.texts)
    ours = [r for r in caplog.records if r.name != "the.provider"]
    assert not [r.getMessage() for r in ours if KEY in r.getMessage()]


# -- sending -------------------------------------------------------------------------------------------------------


async def test_what_the_provider_sends_goes_out_in_order_text_and_binary():
    got = []
    hello = type("Hello", (Echo,), {"hello": (Send("one"), Send(b"\x02two"), Send("three"))})
    probe = Probe()
    async with server(lambda ws: gather(ws, got)) as url:
        async with running(make_feed(probe, hello, url=url)):
            await probe.until(lambda: len(probe.sends) == 3)
    assert got == ["one", b"\x02two", "three"] and probe.sends == list(hello.hello)


async def test_subscribing_keeps_the_provider_s_limit_over_all_its_sessions():
    hello = type("Hello", (Echo,), {"hello": tuple(Send(str(n), subscribes=1) for n in range(3))})
    probe = Probe()
    limits = SharedLimits(Limits(subscribes=(4, 0.3)))
    async with server(lambda ws: gather(ws, [])) as url:
        feeds = [make_feed(probe, hello, url=url, shared_limits=limits) for _ in range(2)]
        async with running(*feeds):
            await probe.until(lambda: len(probe.sent_at) == 6)
    assert probe.sent_at[4] - probe.sent_at[0] > 0.29 and probe.sent_at[5] - probe.sent_at[1] > 0.29


async def test_run_time_subscriptions_go_out_and_wait_for_a_connection_that_is_just_opening():
    got = []
    gate = anyio.Event()

    async def slow(ws, request):
        await gate.wait()

    probe = Probe()
    async with server(lambda ws: gather(ws, got), process_request=slow) as url:
        feed = make_feed(probe, url=url)
        feed.subscribe([Subscription("quotes", "BEFORE")])  # between sessions: `make` knows
        async with running(feed):
            await anyio.wait_all_tasks_blocked()
            feed.subscribe([Subscription("quotes", "EARLY")])
            gate.set()
            await probe.until(lambda: len(probe.sends) == 1)
            feed.subscribe([Subscription("quotes", "A"), Subscription("trades", "B")])
            feed.unsubscribe([Subscription("quotes", "A")])
            await probe.until(lambda: len(probe.sends) == 4)
    assert got == ["+EARLY", "+A", "+B", "-A"] and probe.texts.count("subscribed") == 2


# -- limits --------------------------------------------------------------------------------------------------------


async def test_connects_are_kept_within_the_window_over_all_feeds():
    times = []

    class Timed(Echo):
        def connect(self):
            times.append(anyio.current_time())
            return super().connect()

    async def handler(ws):
        await ws.close()

    probe = Probe()
    limits = SharedLimits(Limits(connects=(2, 0.2)))
    async with server(handler) as url:
        async with running(*(make_feed(probe, Timed, url=url, shared_limits=limits) for _ in range(2))):
            await probe.until(lambda: len(probe.closed) >= 6)
    assert all(later - earlier > 0.19 for earlier, later in zip(times, times[2:], strict=False))


async def test_no_more_connections_at_one_time_than_allowed():
    probe = Probe()
    limits = SharedLimits(Limits(connections_max=1))
    async with server(silent) as url:
        first, second = (make_feed(probe, url=url, shared_limits=limits) for _ in range(2))
        async with running(second):
            async with running(first):
                await probe.until(lambda: len(probe.opened) == 1)
                await anyio.wait_all_tasks_blocked()
                assert len(probe.opened) == 1
                holder, waiter = (first, second) if first.live else (second, first)
                await holder.stop()
                await probe.until(lambda: len(probe.opened) == 2)
                assert waiter.live


async def test_a_window_takes_no_more_than_it_holds_and_big_wishes_get_all_of_it():
    window = Window(3, 0.1)
    start = anyio.current_time()
    for _ in range(7):
        await window.take()
    assert anyio.current_time() - start >= 0.2
    with anyio.fail_after(1):
        await window.take(1000)


# -- REST ----------------------------------------------------------------------------------------------------------


async def ask(request, probe=None):
    """Let a provider make one call, and give the reply that it got."""
    probe = probe or Probe()
    hello = type("Hello", (Echo,), {"hello": (request,)})
    async with server(silent) as url:
        async with running(make_feed(probe, hello, url=url)):
            await probe.until(lambda: probe.texts)
    assert probe.sends == [request]
    (reply,) = probe.replies
    assert probe.texts[0] == f"{reply.tag} {reply.status} {reply.body.decode()}{reply.error}"
    return reply


async def test_a_request_is_performed_and_its_answer_handed_back():
    heads = []

    def answer(head):
        heads.append(head.lower())
        return http(201, b'{"ok": 1}', X_Limit="7")

    async with http_server(answer) as place:
        reply = await ask(Request("list", "POST", f"http://{place}/v1?k={KEY}", {"X-Key": KEY}, b"{}"))
    assert reply == Reply("list", 201, b'{"ok": 1}', reply.headers) and reply.headers["x-limit"] == "7"
    assert heads[0].startswith(f"post /v1?k={KEY} http/1.1".encode()) and f"x-key: {KEY}".encode() in heads[0]


async def test_a_request_follows_a_redirect_within_its_origin_only():
    heads = []

    async with http_server(lambda head: heads.append(head) or http(200, b"elsewhere")) as other:

        def answer(head):
            if head.startswith(b"GET /old"):
                return http(302, Location="/new")
            if head.startswith(b"GET /away"):
                return http(302, Location=f"http://{other}/?k={KEY}")
            return http(200, b"here")

        async with http_server(answer) as place:
            assert (await ask(Request("a", "GET", f"http://{place}/old"))).body == b"here"
            reply = await ask(Request("b", "GET", f"http://{place}/away", {"x-key": KEY}))
    assert reply.status == 0 and "another origin" in reply.error and KEY not in reply.error and not heads


async def test_a_request_is_bounded_in_time_and_size_and_its_errors_hide_the_query():
    async def never(head):
        await anyio.sleep(30)
        return b""

    async with http_server(never) as place:
        late = await ask(Request("late", "GET", f"http://{place}/x?k={KEY}", timeout_secs=0.1))
    async with http_server(lambda head: http(200, b"x" * 5000)) as place:
        large = await ask(Request("large", "GET", f"http://{place}/x?k={KEY}", body_bytes_max=4000))
    refused = await ask(Request("refused", "GET", f"http://{place}/x?k={KEY}"))
    wrong = await ask(Request("wrong", "GET", f"gopher://{place}/x?k={KEY}"))
    assert "no answer within 0.1 s" in late.error and "more than 4000 bytes" in large.error
    assert {reply.status for reply in (late, large, refused, wrong)} == {0}
    assert all(reply.error and KEY not in reply.error for reply in (late, large, refused, wrong))


# -- stop ----------------------------------------------------------------------------------------------------------


async def test_stop_says_goodbye_closes_with_1000_and_reads_nothing_more():
    got, ends = [], []

    async def handler(ws):
        await ws.send("hello")
        await gather(ws, got)
        ends.append((ws.close_code, ws.close_reason))

    class Polite(Echo):
        def closed(self, now_ns):
            self._out.append(Send("logout"))
            return super().closed(now_ns)

    probe = Probe()
    async with server(handler) as url:
        feed = make_feed(probe, Polite, url=url)
        async with running(feed):
            await probe.until(lambda: probe.texts)
    assert got == ["logout"] and ends == [(1000, "")]
    assert probe.texts == ["(b'hello', False)", "last words"]
    assert probe.closed == [(None, 1000, "", None)]


async def test_stop_is_quick_under_a_flood_and_while_the_handler_is_full():
    async def flood(ws):
        while True:
            await ws.send("x" * 500)

    probe = Probe()
    probe.full = True
    async with server(flood, compression=None) as url:
        feed = make_feed(probe, url=url)
        async with running(feed):
            await probe.until(lambda: "waits for room" in probe.log)
            with anyio.fail_after(1):
                await feed.stop()
    assert probe.texts == ["last words"] and probe.closed[0][1] == 1000


async def test_stop_is_bounded_with_a_peer_that_never_answers_the_close(monkeypatch):
    monkeypatch.setattr(connection, "CLOSE_SECS", 0.2)

    async def deaf(ws):
        ws.transport.pause_reading()
        await anyio.sleep(0.5)

    probe = Probe()
    async with server(deaf, close_timeout=0.1) as url:
        feed = make_feed(probe, url=url)
        async with running(feed):
            await probe.until(lambda: probe.opened)
            with anyio.fail_after(1):
                await feed.stop()
    assert len(probe.closed) == 1


async def test_stop_ends_a_try_a_pause_and_a_wait_for_a_place():
    async def never(head):
        await anyio.sleep(30)
        return b""

    probe = Probe()
    async with http_server(never) as place:
        trying = make_feed(probe, url=f"ws://{place}/")
        async with running(trying):
            await anyio.wait_all_tasks_blocked()
    assert trying.stats.connects == 1 and not probe.closed
    async with http_server(lambda head: http(404)) as place:
        pausing = make_feed(probe, url=f"ws://{place}/")
        async with running(pausing):
            await probe.until(lambda: probe.closed)
            assert probe.decisions[0].delay_secs >= 60
    limits = SharedLimits(Limits(connects=(1, 3600)))
    await limits.connects.take()
    waiting = make_feed(probe, url="ws://127.0.0.1:1/", shared_limits=limits)
    async with running(waiting):
        await anyio.wait_all_tasks_blocked()
    assert waiting.stats.connects == 0


async def test_a_feed_stopped_before_it_runs_does_nothing():
    probe = Probe()
    feed = make_feed(probe, url="ws://127.0.0.1:1/")
    await feed.stop()
    with anyio.fail_after(1):
        await feed.run()
    assert not probe.log


async def test_cancelling_leaves_no_connection_behind():
    ends = []

    async def handler(ws):
        await ws.wait_closed()
        ends.append(ws.close_code)
        gone.set()

    gone = anyio.Event()
    probe = Probe()
    async with server(handler) as url:
        async with anyio.create_task_group() as group:
            group.start_soon(make_feed(probe, url=url).run)
            await probe.until(lambda: probe.opened)
            group.cancel_scope.cancel()
        with anyio.fail_after(5):
            await gone.wait()
    assert ends == [1006]
