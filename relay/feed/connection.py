"""The WebSocket: how it is opened, how its frames are read fast, and what its errors mean.

`Wire` is the library's own connection with another inbox: `recv` costs two nested coroutines a frame, hides whether a
frame was text or binary, and does not tell whether another one waits. And it cuts the plainest frames (whole, unmasked,
not compressed, within the bound) out of what was read by itself: the library's generators cost several times as much.
Everything else (handshake, extensions, fragments, control frames, closing, each violation of the protocol) is the
library's. No error text that leaves here holds a key: a URL is named by its host alone.
"""

import asyncio
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    InvalidHandshake,
    InvalidProxy,
    InvalidProxyStatus,
    InvalidStatus,
    InvalidURI,
    NegotiationError,
    ProxyError,
    SecurityError,
)
from websockets.frames import BINARY, CONT, TEXT, Close, Opcode
from websockets.frames import Frame as WireFrame
from websockets.protocol import OPEN
from websockets.typing import Subprotocol

from relay import __version__
from relay.errors import HandshakeRefused, SessionError
from relay.providers.base import Connect

WAITING_HIGH = 16
"""Frames that may wait before reading from the socket pauses, as in the library. One read brings up to 256 KiB of
them at once, so this only decides whether a second read comes on top; 0 to 512 were equally fast."""
FRAGMENTS_MAX = 4096
"""Most fragments of one message, as in the library: empty ones would never reach the bound on bytes."""
HEAD_BYTES_MAX = 64 * 1024
"""Longest head of the answer to an upgrade that is collected; the library's own bounds are far below."""
CLOSE_SECS = 2.0
"""How long a peer may take to answer our close."""
REASON_CHARS_MAX = 200
SECRET_CHARS_MIN = 4
"""Shorter header and query values are no secrets, and hiding them would make texts unreadable."""

_TEXT_WHOLE, _BINARY_WHOLE = 0x81, 0x82  # first byte of a frame with FIN, no reserved bit, and its opcode


class _QuietLogger(logging.Logger):
    """Never lets the library's debug lines through: they print request headers and the path with its query."""

    def isEnabledFor(self, level: int) -> bool:
        return level >= logging.WARNING and super().isEnabledFor(level)


_LOGGER = _QuietLogger("relay.feed.websockets")
_LOGGER.parent = logging.getLogger("relay.feed")


class Data(NamedTuple):
    """A whole data frame."""

    opcode: Opcode
    data: bytes


class Wire(ClientConnection):
    """A client connection whose data frames wait in `waiting`, whole, oldest first.

    Never call `recv` on it. `seen` counts all frames since the start, control frames included; `lost` is set when the
    connection is gone (frames that still wait are good).
    """

    waiting: "deque[WireFrame | Data]"
    seen: int
    lost: bool

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.waiting = deque()
        self.seen = 0
        self.lost = False
        self.closing = False
        self.too_many_fragments = False
        self._held = False
        self._fragments: list[WireFrame] = []
        self._rest = b""  # what has not come whole: the answer's head, then a frame
        self._ours = False  # the upgrade is done: frames are cut here
        self._rest_goes_on = False  # everything goes to the library: a refusal's body, or a connection that has failed
        self._bound = self.protocol.max_message_size or 1 << 62
        self._waiter: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        if self._ours:
            self._cut(self._rest + data if self._rest else bytes(data))
        elif self.response is None and not self._rest_goes_on:
            self._answered(self._rest + data)
        else:
            super().data_received(data)
        if self.waiting:
            if self.closing:
                self.waiting.clear()
                return
            self.wake()
            if not self._held and len(self.waiting) > WAITING_HIGH:
                self._held = True
                self.transport.pause_reading()

    def _answered(self, data: bytes) -> None:
        """Give the library the head of the answer to the upgrade, and no byte more: what follows 101 are frames."""
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 and len(data) <= HEAD_BYTES_MAX:
            self._rest = data
            return
        self._rest = b""
        if end < 4:  # the library says what is wrong with it
            self._rest_goes_on = True
            super().data_received(data)
            return
        super().data_received(data[:end])
        if self.protocol.state is OPEN:
            self._ours = True
            self._cut(data[end:])
        else:  # a refusal has a body
            self._rest_goes_on = True
            if data[end:]:
                super().data_received(data[end:])

    def _cut(self, data: bytes) -> None:
        """Cut whole frames out of what was read; all but the plainest go to the library, one whole frame at a time, so
        that its parser never holds half a frame and the next one may be ours again."""
        position, count = 0, len(data)
        append, make, fragments = self.waiting.append, tuple.__new__, self._fragments
        bound, plain = self._bound, self.protocol.state is OPEN
        while count - position >= 2:
            first, length = data[position], data[position + 1]
            start = position + 2
            if length == 126:
                start += 2
                length = int.from_bytes(data[position + 2 : start], "big")
            elif length == 127:
                start += 8
                length = int.from_bytes(data[position + 2 : start], "big")
            if start > count:
                break
            end = start + length
            if length > bound or data[position + 1] > 127:
                # too big or masked: a violation that ends the connection, told by the library in its own way
                self._ours, self._rest, self._rest_goes_on = False, b"", True
                super().data_received(data[position:])
                return
            if end > count:
                break
            if first == _TEXT_WHOLE and plain and not fragments:
                self.seen += 1
                append(make(Data, (TEXT, data[start:end])))
            elif first == _BINARY_WHOLE and plain and not fragments:
                self.seen += 1
                append(make(Data, (BINARY, data[start:end])))
            else:
                super().data_received(data[position:end])
                plain, fragments = self.protocol.state is OPEN, self._fragments
            position = end
        self._rest = data[position:]

    def eof_received(self) -> None:
        if self._rest:
            rest, self._rest, self._ours = self._rest, b"", False
            super().data_received(rest)
        super().eof_received()

    def process_event(self, event: Any) -> None:
        if self.response is None:  # the answer to the upgrade
            super().process_event(event)
            return
        self.seen += 1
        opcode = event.opcode
        if event.fin and (opcode is TEXT or opcode is BINARY):
            self.waiting.append(event)
        elif opcode is TEXT or opcode is BINARY or opcode is CONT:
            self._fragments.append(event)
            if event.fin:
                whole = b"".join([part.data for part in self._fragments])
                self.waiting.append(WireFrame(self._fragments[0].opcode, whole))
                self._fragments = []
            elif len(self._fragments) > FRAGMENTS_MAX:
                self._fragments = []
                self.too_many_fragments = True
                self.transport.abort()
        else:
            super().process_event(event)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost = True
        self.wake()

    def wake(self) -> None:
        """Let `wait` return, for whatever reason."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until frames came, the connection is gone, or somebody called `wake`. One caller at a time."""
        if self.waiting or self.lost:
            return
        self.resume()
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def resume(self) -> None:
        """Read from the socket again where a full inbox had paused it."""
        if self._held:
            self._held = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    async def hang_up(self, code: int = 1000, reason: str = "") -> None:
        """Close politely within CLOSE_SECS; what still comes is dropped, or the peer's answer would never be read."""
        self.closing = True
        self.waiting.clear()
        self.resume()
        await self.close(code, reason)


class _Connect(connect):
    """Opens a `Wire`; never follows a redirect to another origin, where custom key headers would go along."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        target = super().process_redirect(exc)
        if isinstance(target, str) and _origin(target) != _origin(self.uri):
            return SecurityError(f"it redirects to another origin ({_origin(target)}); not followed")
        return target


def _origin(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or {"ws": 80, "wss": 443, "http": 80, "https": 443}.get(parts.scheme, 0)
    return f"{parts.scheme}://{parts.hostname}:{port}"


@cache
def tls() -> ssl.SSLContext:
    # Loading the system's certificates takes tens of ms of a blocked loop: once a process, not once a connect.
    return ssl.create_default_context()


def host_of(url: str) -> str:
    """Give the host (and port, where it is not the scheme's own) of a URL: all of it that may be shown."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    except ValueError:
        return "(unreadable url)"


def redactor(spec: Connect) -> Callable[[str], str]:
    """Make the function that hides this connection's header and query values in a text."""
    parts = urlsplit(spec.url)
    values = [value for _, value in parse_qsl(parts.query)] + [parts.password or "", parts.username or ""]
    values += [word for value in spec.headers.values() for word in value.split()]
    secrets = sorted({value for value in values if len(value) >= SECRET_CHARS_MIN}, key=len, reverse=True)

    def redact(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "***")
        return text

    return redact


async def open_wire(spec: Connect, now_ns: Callable[[], int]) -> Wire:
    """Open the WebSocket.

    Raises:
        SessionError: for whatever goes wrong; its text is one readable line without secrets.
    """
    options: dict[str, Any] = {}
    if spec.url.startswith("wss:"):
        options["ssl"] = tls()
    try:
        wire = await _Connect(
            spec.url,
            additional_headers=dict(spec.headers),
            user_agent_header=f"market-relay/{__version__}",
            subprotocols=[Subprotocol(name) for name in spec.subprotocols] or None,
            compression="deflate" if spec.compression else None,
            open_timeout=spec.open_secs,
            ping_interval=None,  # pinged by the session: the library's own would kill a connection that we hold back
            close_timeout=CLOSE_SECS,
            max_size=spec.frame_bytes_max,
            logger=_LOGGER,
            create_connection=Wire,
            **options,
        )
    except Exception as error:
        raise _opening_error(error, spec, now_ns()) from None
    assert isinstance(wire, Wire)
    return wire


def _opening_error(error: Exception, spec: Connect, now_ns: int) -> SessionError:
    """Say what a failed opening means: readable, without secrets, with the wanted reaction."""
    host = host_of(spec.url)
    redact = redactor(spec)
    match error:
        case InvalidStatus():
            return _refusal(error, host, redact, now_ns, spec)
        case InvalidURI():
            return HandshakeRefused(f"{host}: not a WebSocket address", code="url", action="fatal")
        case InvalidProxy():
            return SessionError("the proxy's address in the environment is not valid", code="proxy", action="slow")
        case InvalidProxyStatus():
            return SessionError(f"{host}: the proxy refused: HTTP {error.response.status_code}", code="proxy")
        case ProxyError():
            return SessionError(f"{host}: the proxy failed: {redact(str(error))}", code="proxy")
        case NegotiationError():
            return HandshakeRefused(f"{host}: {redact(str(error))}", code="handshake", action="slow")
        case SecurityError():
            code = "redirect" if "redirect" in str(error) else "handshake"
            return HandshakeRefused(f"{host}: {redact(str(error))}", code=code, action="slow")
        case InvalidHandshake():
            return SessionError(f"{host}: no WebSocket answered: {redact(str(error))}", code="handshake")
        case TimeoutError():
            return SessionError(f"{host}: no connection within {spec.open_secs:g} s", code="open_timeout")
        case ssl.SSLCertVerificationError():
            return SessionError(f"{host}: its certificate is not accepted: {error.verify_message}", code="tls")
        case ssl.SSLError():
            return SessionError(f"{host}: TLS failed: {error.reason or error}", code="tls")
        case socket.gaierror():
            return SessionError(f"{host}: the name was not found ({error.strerror})", code="dns")
        case ConnectionRefusedError():
            return SessionError(f"{host}: connection refused", code="connect")
        case OSError():
            # several addresses tried: the numbers differ, one cause is enough
            cause = "connection refused" if "Connect call failed" in str(error) else error.strerror or str(error)
            return SessionError(f"{host}: {redact(cause)[:REASON_CHARS_MAX]}", code="connect")
    return SessionError(f"{host}: {type(error).__name__}: {redact(str(error))[:REASON_CHARS_MAX]}", code="connect")


def _refusal(error: InvalidStatus, host: str, redact: Callable[[str], str], now_ns: int, spec: Connect) -> SessionError:
    response = error.response
    status = response.status_code
    said = redact(" ".join((response.body or b"")[:1000].decode("utf-8", "replace").split()))[:REASON_CHARS_MAX]
    text = f"{host}: refused with HTTP {status}{f': {said}' if said.isprintable() and said else ''}"
    code = f"http_{status}"
    wait = _retry_after(response.headers.get("Retry-After"), now_ns)
    if status in spec.refused_upgrade:
        action, hint = spec.refused_upgrade[status]
        return HandshakeRefused(f"{text} ({hint})", code=code, action=action, wait_secs=wait)
    if status in (401, 403):
        return HandshakeRefused(text, code=code, action="fatal")
    if 300 <= status < 500:
        return HandshakeRefused(text, code=code, action="slow", wait_secs=wait)
    # a server in trouble that names a time is not tried before it
    return SessionError(text, code=code, action="retry" if wait is None else "slow", wait_secs=wait)


def _retry_after(value: str | None, now_ns: int) -> float | None:
    """Read a Retry-After header, seconds or a date (RFC 9110 10.2.3); at most a day."""
    if value is None:
        return None
    try:
        secs = float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - now_ns / 1e9
    except ValueError:
        return None
    return min(max(secs, 0.0), 86_400.0)


def closing_error(wire: Wire, spec: Connect) -> tuple[SessionError | None, int | None, str]:
    """Say why a connection is gone: (error, close code, reason). No error: the provider closed it in good order."""
    host = host_of(spec.url)
    end = wire.protocol.close_exc
    received: Close | None = end.rcvd
    sent: Close | None = end.sent
    if wire.too_many_fragments:
        text = f"{host}: a message in more than {FRAGMENTS_MAX} fragments"
        return SessionError(text, code="frame_too_large"), None, ""
    if sent is not None and not end.rcvd_then_sent and sent.code == 1009:
        text = f"{host}: a frame of more than {spec.frame_bytes_max} bytes"
        return SessionError(text, code="frame_too_large"), sent.code, sent.reason
    if sent is not None and not end.rcvd_then_sent and sent.code not in (1000, 1001):
        text = f"{host}: it broke the WebSocket protocol: {sent.reason or sent.code}"
        return SessionError(text, code=f"close_{sent.code}"), sent.code, sent.reason
    if received is None:
        return SessionError(f"{host}: the connection broke off", code="close_1006"), 1006, ""
    code = received.code
    reason = redactor(spec)(received.reason)[:REASON_CHARS_MAX]
    if code in (1000, 1001, 1005):
        return None, code, reason
    text = f"{host}: closed by the provider with {code}{f': {reason}' if reason else ''}"
    return SessionError(text, code=f"close_{code}", action=spec.closes.get(code, "retry")), code, reason
