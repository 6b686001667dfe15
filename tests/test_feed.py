"""Sessions against real local servers: frames of every kind, faults of a provider's code, sending, stop."""

import asyncio

import anyio
import anyio.lowlevel
import pytest
from feeds import Echo, Probe, gather, http, http_server, make_feed, running, server, silent

from relay import model
from relay.feed import BATCH_FRAMES, SharedLimits, connection
from relay.providers.base import Limits, Send, Subscription

pytestmark = pytest.mark.usefixtures("quick_ticks")

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
