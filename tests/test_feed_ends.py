"""How sessions end against real local servers, what follows, rollovers, silence."""

import contextlib

import anyio
import anyio.lowlevel
import pytest
from feeds import KEY, Echo, Probe, make_feed, running, server, silent
from websockets.exceptions import ConnectionClosed

from relay import model
from relay.errors import HandshakeRefused, SessionError, SessionStale
from relay.feed import SharedLimits, session
from relay.providers.base import Limits, Subscription
from relay.retry import Decision, Policy

pytestmark = pytest.mark.usefixtures("quick_ticks")

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
