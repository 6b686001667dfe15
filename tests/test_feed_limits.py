"""Limits of a provider over all its sessions, and REST calls against a real local server."""

import anyio
import anyio.lowlevel
import pytest
from feeds import KEY, Echo, Probe, http, http_server, make_feed, running, server, silent

from relay.feed import SharedLimits
from relay.feed.limits import Window
from relay.providers.base import Limits, Reply, Request

pytestmark = pytest.mark.usefixtures("quick_ticks")

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
