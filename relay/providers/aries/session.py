"""One connection to Aries: subscriptions, keep-alive, lines and messages, errors by the id they echo."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from relay.errors import SessionError, SessionStale
from relay.model import Status
from relay.providers.aries import wire
from relay.providers.aries.accounts import map_account
from relay.providers.aries.login import Login, life_ms
from relay.providers.aries.market import Market, market_status
from relay.providers.aries.options import PATHS, URL, AriesOptions, charted, endpoint_of, normal
from relay.providers.aries.tokens import SECOND, TOKEN_TAG, AriesShared
from relay.providers.base import BaseProvider, Connect, Frame, Output, Reply, Request, Send, Subscription, reject

FRAME_BYTES_MAX = 16 * 1024 * 1024
PING_SECS = 30
PONG_SECS = 10
"""No frame of any kind this long after a ping: the connection is dead."""
RESUBSCRIBE_SECS = 10
"""After a renewed login without any data for this long, what is subscribed is asked for once more (unknown U6)."""
ERROR_CHARS_MAX = 1000
PENDING_MAX = 10_000
"""Requests whose refusal can still be told by its id; refusals come at once, the oldest are forgotten."""


class _Asked(NamedTuple):
    """What a subscribe or unsubscribe message stands for, by the id that an answer may echo."""

    what: str
    subscriptions: list[Subscription]
    label: str


class Session(BaseProvider):
    """One session with one of the three endpoints; which one follows from what it carries."""

    options: AriesOptions
    shared: AriesShared

    def __init__(self, options: AriesOptions, subscriptions: Sequence[Subscription], shared: AriesShared) -> None:
        super().__init__(options, [_normal(one) for one in subscriptions], shared)
        self._charted = charted(options)
        self._prints = frozenset(map(normal, options.time_and_sales))
        first = self.subscriptions[0] if self.subscriptions else None
        self.endpoint = endpoint_of(self._charted, first) if first else "market"
        self._account = shared.account if self.endpoint == "accounts" else None
        self._market = Market(shared, self.subscriptions)
        self._ids: dict[str, int] = {}
        self._heard = True
        self._data = False
        self._carry = b""
        self._ending: SessionError | None = None
        self._subscribed = False
        self._login = Login(shared, self.endpoint, self._out_later)
        self._check_ns: int | None = None
        self._ping_ns = 0
        self._ping_id = ""
        self._pending: dict[str, _Asked] = {}

    def connect(self) -> Connect:
        """The endpoint's address. No protocol pings: the application's own ping decides (its rule counts any frame)."""
        base = (self.options.url or URL).rstrip("/")
        return Connect(
            base + PATHS[self.endpoint],
            ping_secs=None,
            frame_bytes_max=FRAME_BYTES_MAX,
            refused_upgrade={
                403: ("slow", "no token was sent yet: a proxy, or the provider's gate, refuses this machine")
            },
            closes={},  # no close code is documented: ordinary backoff
        )

    # -- time ----------------------------------------------------------------------------------------------------

    def opened(self, now_ns: int) -> Sequence[Output]:
        self._ping_ns = now_ns
        self._login.begin(now_ns)
        return ()

    def tick(self, now_ns: int) -> Sequence[Output]:
        if self._ending is not None:
            raise self._ending
        self._keep_alive(now_ns)
        self._login.tick(now_ns)
        if self._check_ns is not None and now_ns >= self._check_ns:
            self._check_ns = None
            if not self._data and (self.endpoint == "accounts" or self.shared.market_open is not False):
                self._subscribe_all()
        return ()

    def _keep_alive(self, now_ns: int) -> None:
        since = now_ns - self._ping_ns
        if not self._heard and since >= PONG_SECS * SECOND:
            raise SessionStale(f"nothing came within {PONG_SECS} s of a ping", code="ping_timeout")
        if since >= PING_SECS * SECOND:
            self._ping_ns = now_ns
            self._heard = False
            self._ping_id = self._id("ping")
            self._out.append(Send(wire.ping(self._ping_id, self.shared.old_ping)))

    def closed(self, now_ns: int) -> Sequence[Output]:
        self._login.closed()
        carry, self._carry = self._carry, b""
        return (self._reject("not_json", "the connection ended within a message", carry),) if carry else ()

    def replied(self, reply: Reply, now_ns: int) -> Sequence[Output]:
        if reply.tag != TOKEN_TAG:
            return ()
        degraded = self._login.replied(reply, now_ns)
        return () if degraded is None else (degraded,)

    def _accepted(self, payload: wire.Payload, now_ns: int, out: list[Output]) -> None:
        again = self._login.accepted
        ends_ns = self._login.take(life_ms(payload.data), now_ns)
        if again:
            out.append(Status(event="renewed", text="logged in again on the same connection", until=ends_ns))
            self._data = False
            self._check_ns = now_ns + RESUBSCRIBE_SECS * SECOND
            return
        out.append(Status(event="authenticated", code=self.endpoint, until=ends_ns))
        if not self._subscribed:
            self._subscribe_all()

    # -- subscriptions -------------------------------------------------------------------------------------------

    def _subscribe_all(self) -> None:
        self._subscribed = True
        self._ask("subscribe", self.subscriptions)

    def subscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]:
        known = set(self.subscriptions)
        fresh = [one for one in map(_normal, subscriptions) if one not in known]
        self.subscriptions += fresh
        self._market.wants(self.subscriptions)
        if self._subscribed and fresh:
            # whether an item adds to or replaces an earlier one is unknown: name all that a symbol is wanted for
            raws = {one.raw for one in fresh}
            self._ask("subscribe", [one for one in self.subscriptions if one.raw in raws])
        return ()

    def unsubscribe(self, subscriptions: Sequence[Subscription], now_ns: int) -> Sequence[Output]:
        gone = set(map(_normal, subscriptions))
        gone &= set(self.subscriptions)
        self.subscriptions = [one for one in self.subscriptions if one not in gone]
        self._market.wants(self.subscriptions)
        if not gone:
            return ()
        if self._subscribed:
            if self.endpoint == "accounts":
                if not self.subscriptions:
                    self._ask("unsubscribe", list(gone))
            else:
                self._ask("unsubscribe", sorted(gone))
                # what a partial unsubscription leaves is unknown: ask again for the rest of these symbols
                raws = {one.raw for one in gone}
                self._ask("subscribe", [one for one in self.subscriptions if one.raw in raws])
        return [
            Status(event="unsubscribed", channel=one.channel, raw_symbol=one.raw or None, symbol=self._symbol(one))
            for one in sorted(gone)
        ]

    def _ask(self, what: str, subscriptions: list[Subscription]) -> None:
        """Send subscribe or unsubscribe messages, and remember what each id stands for."""
        if not subscriptions:
            return
        items: list[tuple[dict[str, Any], list[Subscription]]]
        if self.endpoint == "accounts":
            # a topic a message, so that a refusal tells which one
            for item in wire.account_items(self.options):
                parts = subscriptions if item["topic"] == "account" else [Subscription("account", "")]
                self._request(what, [item], parts, f"topic {item['topic']}: ")
            return
        elif self.endpoint == "charts":
            by_symbol: dict[str, list[Subscription]] = {}
            for one in subscriptions:
                by_symbol.setdefault(one.raw, []).append(one)
            items = [({"symbol": raw}, parts) for raw, parts in by_symbol.items()]
        else:
            items = wire.market_items(self.options, subscriptions, self._prints)
        for part in wire.chunks(items, self.options.max_symbols_per_message):
            self._request(what, [item for item, _ in part], [one for _, parts in part for one in parts])

    def _request(self, what: str, items: list[dict[str, Any]], stands_for: list[Subscription], label: str = "") -> None:
        request_id = self._id("sub" if what == "subscribe" else "unsub")
        if len(self._pending) >= PENDING_MAX:
            del self._pending[next(iter(self._pending))]
        self._pending[request_id] = _Asked(what, stands_for, label)
        self._out.append(Send(wire.encode({"type": what, "id": request_id, "payload": items}), subscribes=1))

    def _symbol(self, subscription: Subscription) -> str | None:
        return self.shared.names[subscription.raw][1] if subscription.raw else None

    # -- what comes in -------------------------------------------------------------------------------------------

    def receive(self, frame: Frame) -> Sequence[Output]:
        if self._ending is not None:
            raise self._ending
        self._heard = True
        out: list[Output] = []
        data = frame.data
        if data[:3] == wire.BOM:
            data = data[3:]
        # on LF only: other line separators may stand unescaped inside JSON strings
        lines = data.split(b"\n")
        if self._carry:
            self._join(lines, out)
        last = len(lines) - 1
        ended: SessionError | None = None
        for number, line in enumerate(lines):
            line = line.strip(wire.BLANKS)
            if not line:
                continue
            try:
                envelope = wire.decode(line)
            except msgspec.ValidationError:
                self._odd(line, out)
                continue
            except msgspec.DecodeError as error:
                if number == last and len(line) <= wire.CARRY_BYTES_MAX:
                    self._carry = lines[number]  # rule A-CARRY: its end may come with the next frame
                else:
                    out.append(self._reject("not_json", str(error), line))
                continue
            except UnicodeDecodeError:
                out.append(self._reject("not_text", "not UTF-8", line))
                continue
            except RecursionError:
                out.append(self._reject("too_deep", "nested too deeply", line))
                continue
            try:
                self._message(envelope, line, frame.received_ns, out)
            except SessionError as error:
                ended = ended or error
        if ended is not None:
            if not out:
                raise ended
            self._ending = ended  # what came beside it is handed on first; the next call raises
        if not out:
            self.useless += 1
        return out

    def _join(self, lines: list[bytes], out: list[Output]) -> None:
        """Put the kept end of the last frame before the first line, where both make one message."""
        carry, self._carry = self._carry, b""
        joint = carry + lines[0]
        try:
            wire.decode_any(joint.strip(wire.BLANKS))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            out.append(self._reject("not_json", "a broken line, or the first half of a lost message", carry))
        else:
            lines[0] = joint

    def _odd(self, line: bytes, out: list[Output]) -> None:
        """JSON, but not shaped as a message."""
        try:
            document = wire.decode_any(line)
        except RecursionError:
            out.append(self._reject("too_deep", "nested too deeply", line))
            return
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            out.append(self._reject("not_json", str(error), line))
            return
        if not isinstance(document, dict):
            out.append(self._reject("not_object", f"a {type(document).__name__}", line))
            return
        request_id = document.get("id")
        if document.get("type") == "response" and isinstance(document.get("payload"), list | str | int | bool):
            # an answer whose payload is no object is an answer all the same
            self._answered(request_id, out)
            return
        out.append(self._reject("bad_field", "a member has another type than documented", line))

    def _message(self, envelope: wire.Envelope, line: bytes, now_ns: int, out: list[Output]) -> None:
        payload = envelope.payload
        if payload is None or envelope.type is None:
            self._bare(envelope, line, now_ns, out)
            return
        action = payload.action
        if action == "update" or action == "snapshot":
            name = payload.type
            kind = wire.kind_of(name) if name is not None else None
            if kind is None:
                kind = wire.kind_by_members(payload.data)
                if kind is None:
                    out.append(self._reject("unknown_type", f"unknown stream {str(name)[:100]}", line))
                    return
            self._mapped(kind, payload, envelope, line, out)
        else:
            self._control(action, payload, envelope, line, now_ns, out)

    def _mapped(
        self, kind: wire.Kind, payload: wire.Payload, envelope: wire.Envelope, line: bytes, out: list[Output]
    ) -> None:
        if kind == "market_status":
            if isinstance(payload.data, dict):
                self.shared.market_open = market_status(payload.data, payload, envelope, out)
            else:
                out.append(self._reject("bad_field", "market status whose data is not an object", line))
            return
        self._data = True
        if kind in wire.MARKET_KINDS:
            self._market.map(kind, payload, envelope, line, out)
        else:
            map_account(kind, payload, envelope, self.shared, line, out)

    def _bare(self, envelope: wire.Envelope, line: bytes, now_ns: int, out: list[Output]) -> None:
        """A message without payload or without type: a pong, an answer, or the older protocol."""
        if envelope.type is None and envelope.action is None:
            out.append(self._reject("missing_field", "neither type nor action", line))
        elif envelope.type == "pong" or envelope.action in ("pong", "ping"):
            return
        elif envelope.error is not None or envelope.action == "error":
            self._error(envelope.id, envelope.error or envelope.message, now_ns, out)
        elif envelope.type == "response":
            self._answered(envelope.id, out)
        elif envelope.type is not None and isinstance(envelope.data, dict):
            kind = wire.kind_of(envelope.type)
            if kind in wire.MARKET_KINDS and kind is not None:
                self._mapped(kind, wire.Payload(action="update", data=envelope.data), envelope, line, out)
            else:
                out.append(self._reject("unknown_type", f"unknown type {envelope.type[:100]}", line))
        else:
            out.append(self._reject("unknown_type", f"unknown {envelope.type or envelope.action}"[:200], line))

    def _control(
        self,
        action: str | None,
        payload: wire.Payload,
        envelope: wire.Envelope,
        line: bytes,
        now_ns: int,
        out: list[Output],
    ) -> None:
        request_id = payload.id if payload.id is not None else envelope.id
        if envelope.type == "pong" or action == "pong":
            return
        if action == "error" or payload.error is not None or envelope.error is not None:
            self._error(request_id, payload.error if payload.error is not None else envelope.error, now_ns, out)
        elif action == "authSuccess":
            self._accepted(payload, now_ns, out)
        elif action == "authRequired":
            self._login.wanted(now_ns)
        elif action == "refreshAuth":
            life = life_ms(payload.data)
            out.append(
                Status(
                    event="notice",
                    code=action,
                    text="the session ends soon",
                    action="log in again on the same connection",
                    until=now_ns + life * 1_000_000 if life is not None else None,
                )
            )
            self._login.renew(now_ns)
        elif action == "authExpired":
            self._login.expired()
        elif envelope.type == "response":
            self._answered(request_id, out)
        elif envelope.type == "event" and action is None and payload.data is not None:
            # a charting event without an action is data all the same
            kind = (wire.kind_of(payload.type) if payload.type else None) or wire.kind_by_members(payload.data)
            if kind is None:
                out.append(self._reject("unknown_type", "an event without action", line))
            else:
                self._mapped(kind, payload, envelope, line, out)
        elif action is not None and action == "subscribed":
            self._answered(request_id, out)
        elif self._pending.get(str(request_id)):
            self._answered(request_id, out)
        else:
            out.append(self._reject("unknown_type", f"unknown action {str(action)[:100]}", line))

    def _answered(self, request_id: Any, out: list[Output]) -> None:
        """An answer that is no error: with the id of a subscription it confirms that one, else it is useless."""
        asked = self._pending.get(str(request_id))
        if asked is not None and asked.what == "subscribe":
            out += [
                Status(event="subscribed", channel=one.channel, raw_symbol=one.raw or None, symbol=self._symbol(one))
                for one in asked.subscriptions
            ]

    def _error(self, request_id: Any, said: Any, now_ns: int, out: list[Output]) -> None:
        """There are no error codes: the echoed id and the situation decide. Raises: HandshakeRefused (login)."""
        text = _error_text(said)
        asked = str(request_id) if isinstance(request_id, str | int) else ""
        low = text.lower()
        unnamed = not asked and self._login.pending and ("authenticat" in low or "token is required" in low)
        if unnamed or (asked and asked == self._login.request_id):
            self._login.refused(text)
        if asked and asked == self._ping_id:
            switched = not self.shared.ping_switched
            if switched:
                self.shared.ping_switched = True
                self.shared.old_ping = not self.shared.old_ping
            does = "ping in the other shape" if switched else "none"
            out.append(Status(event="notice", code="ping", text=text, action=does))
            return
        request = self._pending.get(asked)
        if request is not None:
            label = request.label if request.what == "subscribe" else f"unsubscribe: {request.label}"
            out += [
                Status(
                    event="refused",
                    channel=one.channel,
                    raw_symbol=one.raw or None,
                    symbol=self._symbol(one),
                    text=label + text,
                    action="none before the next connection",
                )
                for one in request.subscriptions
            ]
            return
        if asked.startswith(("sub-", "unsub-")):
            out.append(Status(event="refused", text=text))
            return
        out.append(Status(event="notice", code="error", text=text))

    # -- small things --------------------------------------------------------------------------------------------

    def _id(self, kind: str) -> str:
        self._ids[kind] = number = self._ids.get(kind, 0) + 1
        return f"{kind}-{number}"

    def _out_later(self, message: Send | Request) -> None:
        self._out.append(message)

    def _reject(self, reason: Any, detail: str, line: bytes) -> Output:
        return reject(reason, detail, line, account=self._account)


def _normal(subscription: Subscription) -> Subscription:
    return subscription._replace(raw=normal(subscription.raw)) if subscription.raw else subscription


def _error_text(said: Any) -> str:
    """The text of an error member: itself, an object's `message`, else its JSON."""
    if isinstance(said, dict) and isinstance(said.get("message"), str):
        said = said["message"]
    if isinstance(said, str):
        return said[:ERROR_CHARS_MAX] or "error without a text"
    return msgspec.json.encode(said).decode()[:ERROR_CHARS_MAX] if said is not None else "error without a text"
