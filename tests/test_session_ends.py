"""What a provider may say of a session's end: refused upgrades, close codes, waits."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import pytest
from feeds import Echo, Probe, make_feed, running, server

from relay.errors import SessionError
from relay.feed import session
from relay.providers.base import Output
from relay.providers.etoro.options import EtoroOptions
from relay.providers.etoro.reference import EtoroShared
from relay.providers.etoro.session import POLICY_CLOSES_MAX, EtoroSession


async def closing(ws: Any) -> None:
    await ws.close(1008, "policy")


@pytest.mark.parametrize(
    ("connect", "action", "said"),
    [({}, "fatal", "HTTP 403"), ({"refused_upgrade": {403: ("retry", "no key was sent")}}, "retry", "no key was sent")],
)
async def test_a_refused_upgrade_means_what_the_provider_says(connect: Any, action: str, said: str) -> None:
    def refuse(ws: Any, request: Any) -> Any:
        return ws.respond(HTTPStatus.FORBIDDEN, "no\n")

    probe = Probe()
    async with server(closing, process_request=refuse) as url:
        async with running(make_feed(probe, url=url, **connect)):
            await probe.until(lambda: probe.closed)
    assert probe.errors[0].action == action and probe.errors[0].code == "http_403" and said in probe.errors[0].text


@pytest.mark.parametrize(
    ("connect", "action"), [({}, "slow"), ({"closes": {}}, "retry"), ({"closes": {1008: "fatal"}}, "fatal")]
)
async def test_a_close_code_means_what_the_provider_says(connect: Any, action: str) -> None:
    probe = Probe()
    async with server(closing) as url, running(make_feed(probe, url=url, **connect)):
        await probe.until(lambda: probe.closed)
    assert probe.errors[0].action == action and probe.errors[0].code == "close_1008"


async def test_the_wait_that_a_provider_wishes_at_the_close_is_kept() -> None:
    class Paused(Echo):
        def closed(self, now_ns: int) -> Sequence[Output]:
            raise SessionError("until midnight", code="quota", action="until", until_ns=now_ns + 3600 * 10**9)

    probe = Probe()
    async with server(closing) as url, running(make_feed(probe, Paused, url=url)):
        await probe.until(lambda: probe.closed)
    assert probe.closed[0][1:3] == (1008, "policy")
    assert probe.decisions[0].kind == "until" and 3590 < probe.decisions[0].delay_secs < 3660


async def test_the_wait_is_kept_too_where_silence_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "GONE_SECS", 0.01)

    class Paused(Echo):
        def closed(self, now_ns: int) -> Sequence[Output]:
            raise SessionError("until midnight", code="quota", action="until", until_ns=now_ns + 3600 * 10**9)

    async def silent(ws: Any) -> None:
        await ws.wait_closed()

    probe = Probe()
    async with server(silent) as url, running(make_feed(probe, Paused, url=url, silence_secs=0.05)):
        await probe.until(lambda: probe.closed)
    assert probe.decisions[0].kind == "until"


async def test_a_refusal_by_the_provider_itself_is_not_replaced_by_its_wish() -> None:
    class Refused(Echo):
        def receive(self, frame: Any) -> Sequence[Output]:
            raise SessionError("bad key", code="key", action="fatal")

        def closed(self, now_ns: int) -> Sequence[Output]:
            raise SessionError("until midnight", code="quota", action="until", until_ns=now_ns)

    async def speaks(ws: Any) -> None:
        await ws.send("no")
        await ws.wait_closed()

    probe = Probe()
    async with server(speaks) as url, running(make_feed(probe, Refused, url=url)):
        await probe.until(lambda: probe.closed)
    assert probe.errors[0].code == "key"


async def test_what_is_said_of_the_end_replaces_the_usual_reaction_and_a_fault_in_it_does_not() -> None:
    told: list[Any] = []

    class Ended(Echo):
        def ended(self, code: int | None, reason: str, carried: bool) -> SessionError | None:
            told.append((code, reason, carried))
            if len(told) == 1:
                raise ValueError("a fault")
            return SessionError("enough", code="enough", action="fatal")

    probe = Probe()
    async with server(closing) as url, running(make_feed(probe, Ended, url=url, closes={})):
        await probe.until(lambda: len(probe.closed) == 2)
    assert told == [(1008, "policy", False)] * 2
    assert [error.code for error in probe.errors] == ["close_1008", "enough"]


def test_etoro_gives_up_after_closes_by_policy_without_data() -> None:
    options = EtoroOptions(api_key="a", user_key="u", quotes=("1001",))
    shared = EtoroShared(options)

    def end(code: int | None, heard: bool) -> str | None:
        session = EtoroSession(options, (), shared)
        session._control.heard_data = heard
        error = session.ended(code, "", heard)
        return error.action if error else None

    assert [end(1008, False) for _ in range(POLICY_CLOSES_MAX - 1)] == ["retry"] * 4
    assert end(4003, True) == "retry", "data came between: counted anew"
    assert end(1006, False) is None and end(None, False) is None
    assert [end(4003, False) for _ in range(4)] == ["retry"] * 3 + ["fatal"]
