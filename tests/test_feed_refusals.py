"""What a feed makes of servers that refuse, redirect, cannot be reached or cannot be trusted."""

import asyncio
import logging
import shutil
import socket
import ssl
from datetime import UTC, datetime
from email.utils import format_datetime

import anyio
import anyio.lowlevel
import pytest
from feeds import KEY, Echo, Probe, http_server, make_feed, running, server, silent

from relay.providers.base import Send

pytestmark = pytest.mark.usefixtures("quick_ticks")

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
