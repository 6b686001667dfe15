"""eToro's control side in one session: authentication, operations with their ids and deadlines, refusals.

Rules 2.2, 3 and 6 of the provider's sheet. Codes are published facts, the reactions are ours (design.md 11).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from relay.errors import Action, HandshakeRefused, SessionError
from relay.model import Status
from relay.providers.base import Output, Request, Send
from relay.providers.etoro import wire
from relay.providers.etoro.options import CHUNK_BYTES_MIN
from relay.providers.etoro.reference import PAUSES_SECS, EtoroShared
from relay.providers.etoro.topics import PRIVATE, Desk, chunks, flat_messages, operation_message
from relay.providers.etoro.wire import Object

AUTH_SECS = 10.0
ACK_SECS = 10.0
"""An operation without an answer for this long is lost; acks take milliseconds."""
LOST_MAX = 3
"""Times that one operation is sent before the session is given up."""
TROUBLE_MAX = 5
"""Times that an operation is sent again after UnhandledException before its topics count as refused."""
REFUSALS_MAX = 5
"""Logins refused in a row with a code that nobody knows, before it is fatal."""
FIRST_DATA_SECS = 15.0
"""A `header` or `action` session without data this long after subscribing is told to try the other dialect."""

_CREDENTIALS = frozenset("invalidkey unauthorized apikeyrequired userkeyrequired datarequired forbidden".split())
_ROOM = ("too many subscription", "subscriptions for session")
Verb = Literal["Authenticate", "Subscribe", "Unsubscribe"]
VERBS: dict[str, Verb] = {"authenticate": "Authenticate", "subscribe": "Subscribe", "unsubscribe": "Unsubscribe"}


@dataclass
class Operation:
    """One operation: on its way (`due_ns` is its deadline), or to be sent again (`due_ns` is when)."""

    verb: Verb
    topics: list[str]
    due_ns: int = 0
    lost: int = 0
    troubles: int = 0
    size: int = 0


def failed(value: Object) -> bool:
    """Tell whether a control reply is a refusal: `success` false (or its text), or any error code."""
    return wire.flag(value.get("success")) is False or bool(wire.text_of(value.get("errorCode")))


def refusal_action(code: str) -> Action:
    """What a refused login asks for, by its code."""
    return "fatal" if code.lower() in _CREDENTIALS else "retry"


class Control:
    """Login and subscriptions of one session; what must go out is appended to `out`."""

    def __init__(self, shared: EtoroShared, desk: Desk, out: list[Send | Request]) -> None:
        self.shared, self.desk, self.out = shared, desk, out
        self.inband = desk.dialect == "inband"
        self.authenticated = False
        self.auth: Operation | None = None
        self.auth_id = ""
        self.pending: dict[str, Operation] = {}
        self.later: list[Operation] = []
        self.heard_data = False
        self._first_sent_ns = 0
        self._told_silent = False

    # -- going out --

    def opened(self, now_ns: int) -> list[Output]:
        if self.inband:
            self._login(now_ns)
            return []
        # the upgrade was accepted, which is all the proof that this dialect gives
        self.authenticated = True
        self.send_unsent(now_ns)
        return [Status(event="authenticated", text="the upgrade was accepted")]

    def _login(self, now_ns: int) -> None:
        api_key, user_key = self.shared.options.keys()
        self.auth_id = self.shared.request_id()
        self.auth = Operation("Authenticate", [], due_ns=now_ns + int(AUTH_SECS * 1e9))
        body = {
            "id": self.auth_id,
            "operation": "Authenticate",
            "data": {"userKey": user_key, "apiKey": api_key},
        }
        self.out.append(Send(msgspec.json.encode(body).decode()))

    def send_unsent(self, now_ns: int) -> None:
        """Subscribe to whatever can be asked for and was not yet."""
        if self.authenticated:
            self._send("Subscribe", self.desk.unsent(), now_ns)

    def unsubscribe(self, topics: Sequence[str], now_ns: int) -> None:
        """Unsubscribe from topics; what still waits to be sent is only forgotten."""
        gone = set(topics)
        for operation in self.later:
            if operation.verb == "Subscribe":
                gone -= set(operation.topics)
                operation.topics = [topic for topic in operation.topics if topic not in topics]
        self.later = [operation for operation in self.later if operation.topics]
        if self.authenticated:
            self._send("Unsubscribe", [topic for topic in topics if topic in gone], now_ns)

    def _send(self, verb: Verb, topics: Sequence[str], now_ns: int) -> None:
        for part in chunks(topics, self.shared.chunk_bytes):
            if self.inband:
                self._dispatch(Operation(verb, part), now_ns)
                continue
            for text in flat_messages(self.desk.dialect, verb.lower(), part):
                self.out.append(Send(text))
            if verb == "Subscribe" and not self._first_sent_ns:
                self._first_sent_ns = now_ns

    def _dispatch(self, operation: Operation, now_ns: int) -> None:
        ident = self.shared.request_id()
        text = operation_message(ident, operation.verb, operation.topics)
        operation.size = len(text)
        operation.due_ns = now_ns + int(ACK_SECS * 1e9)
        self.pending[ident] = operation
        self.out.append(Send(text))

    # -- time --

    def tick(self, now_ns: int) -> list[Output]:
        """Look after deadlines and waits. Raises: SessionError where the session is given up."""
        out: list[Output] = []
        if self.auth is not None and now_ns >= self.auth.due_ns:
            if self.auth_id:
                raise HandshakeRefused(f"no answer to the login within {AUTH_SECS:g} s", code="auth_timeout")
            self._login(now_ns)
        for ident, operation in list(self.pending.items()):
            if now_ns < operation.due_ns:
                continue
            del self.pending[ident]
            operation.lost += 1
            what = f"{operation.verb} of {_count(operation.topics)}"
            if operation.lost >= LOST_MAX:
                raise SessionError(f"no answer to {what}, sent {LOST_MAX} times", code="ack_timeout")
            out.append(Status(event="degraded", code="ack_timeout", text=f"no answer to {what}", action="send again"))
            self._dispatch(operation, now_ns)
        if self.later:
            due = [operation for operation in self.later if operation.due_ns <= now_ns]
            self.later = [operation for operation in self.later if operation.due_ns > now_ns]
            for operation in due:
                if self.inband:
                    self._dispatch(operation, now_ns)
                else:
                    self._send(operation.verb, operation.topics, now_ns)
        if self._first_sent_ns and not self.heard_data and not self._told_silent:
            if now_ns - self._first_sent_ns > FIRST_DATA_SECS * 1e9:
                self._told_silent = True
                text = (
                    f"no data {FIRST_DATA_SECS:g} s after subscribing; the live service is only known to speak the "
                    "other dialect: try dialect: inband"
                )
                out.append(Status(event="degraded", code="no_data", text=text))
        return out

    def closed(self) -> None:
        """Learn from the end of the session: a large message without an answer may have been what broke it."""
        largest = max((operation.size for operation in self.pending.values()), default=0)
        if largest > CHUNK_BYTES_MIN:
            self.shared.chunk_bytes = max(CHUNK_BYTES_MIN, min(self.shared.chunk_bytes, largest) // 2)

    # -- answers --

    def verb_of(self, value: Object) -> Verb | None:
        """Tell what an object is the answer to; None where it is no control reply (rule R3)."""
        told = value.get("operation")
        if isinstance(told, str):
            verb = VERBS.get(told.lower())
            if verb is not None:
                return verb
        judged = "success" in value or "errorCode" in value
        kind = value.get("type")
        verb = VERBS.get(kind.lower()) if isinstance(kind, str) else None
        if verb == "Authenticate" or (verb is not None and judged):
            return verb
        ident = value.get("id")
        if self.auth is not None and self.auth_id:
            if ident == self.auth_id:
                return "Authenticate"
            if judged and not told and wire.text_of(value.get("errorCode")).lower() != "binarymessagesnotsupported":
                if not (isinstance(ident, str) and ident in self.pending):
                    return "Authenticate"
        if judged and isinstance(ident, str) and ident in self.pending:
            return self.pending[ident].verb
        return None

    def answered(self, verb: Verb, value: Object, now_ns: int) -> list[Output]:
        """Take a control reply. Raises: HandshakeRefused for a refused login."""
        code = wire.text_of(value.get("errorCode"))
        text = wire.text_of(value.get("errorMessage"))
        if verb == "Authenticate":
            if failed(value) and code.lower() != "sessionalreadyauthenticated":
                return self._login_refused(code, text, value.get("retryAfter"), now_ns)
            self.auth, self.authenticated = None, True
            self.shared.refusals = self.shared.pauses = 0
            self.send_unsent(now_ns)
            return [Status(event="authenticated", code=code or None)]
        ident = value.get("id")
        operation = self.pending.pop(ident, None) if isinstance(ident, str) else None
        if failed(value):
            return self._refused(operation or Operation(verb, []), code, text, value.get("retryAfter"), now_ns)
        self.shared.pauses = 0
        channel = None
        said = None
        if operation is not None:
            channel = "orders" if PRIVATE in operation.topics else "quotes"
            said = _count(operation.topics)
        return [Status(event="unsubscribed" if verb == "Unsubscribe" else "subscribed", channel=channel, text=said)]

    def _login_refused(self, code: str, text: str, wait: Any, now_ns: int) -> list[Output]:
        if code.lower() == "toomanyrequests":
            secs = self.shared.pause_secs(wait)
            self.auth, self.auth_id = Operation("Authenticate", [], due_ns=now_ns + int(secs * 1e9)), ""
            return [_quota(code, text or "too many requests", now_ns + int(secs * 1e9), "log in again")]
        said = f"eToro refused the login: {code or 'no code'}{f': {text}' if text else ''}"
        action = refusal_action(code)
        if action == "fatal":
            raise HandshakeRefused(said, code=code, action="fatal")
        if code.lower() != "unhandledexception":
            self.shared.refusals += 1
            if self.shared.refusals >= REFUSALS_MAX:
                raise HandshakeRefused(
                    f"{said} ({REFUSALS_MAX} times in a row)", code=code or "refused", action="fatal"
                )
        raise HandshakeRefused(said, code=code or "refused", wait_secs=PAUSES_SECS[0])

    def _refused(self, operation: Operation, code: str, text: str, wait: Any, now_ns: int) -> list[Output]:
        """React to a refused operation: wait and send it again, or tell which topics are refused."""
        word = code.lower()
        if word == "toomanyrequests":
            operation.due_ns = now_ns + int(self.shared.pause_secs(wait) * 1e9)
            if operation.topics:
                self.later.append(operation)
            return [_quota(code, text or "too many requests", operation.due_ns, f"{operation.verb} again")]
        if word == "unhandledexception" and operation.topics and operation.troubles < TROUBLE_MAX:
            secs = PAUSES_SECS[min(operation.troubles, len(PAUSES_SECS) - 1)]
            operation.troubles += 1
            operation.due_ns = now_ns + int(secs * 1e9)
            self.later.append(operation)
            return [
                Status(event="degraded", code=code, text=text, action=f"{operation.verb} again", until=operation.due_ns)
            ]
        if any(part in text.lower() for part in _ROOM):
            text += "; lower connection_topics_max so that they go to further connections"
        if operation.verb == "Unsubscribe":
            return [Status(event="degraded", code=code or "refused", text=f"unsubscribe refused: {text}")]
        refused: list[Output] = []
        for topic in operation.topics:
            for sub in self.desk.refuse(topic):
                ident = self.shared.id_of(sub.raw) if sub.raw else None
                refused.append(
                    Status(
                        event="refused",
                        channel=sub.channel,
                        symbol=self.shared.table[ident][0] if ident else None,
                        raw_symbol=ident,
                        code=code or "refused",
                        text=text or None,
                    )
                )
        return refused or [Status(event="refused", code=code or "refused", text=text or None)]

    def overheard(self, value: Object) -> None:
        """Count another client's operation as ours: its answer comes by its id, for its topics."""
        verb, ident = VERBS.get(str(value.get("operation")).lower()), value.get("id")
        body = value.get("data")
        topics = body.get("topics") if isinstance(body, dict) else None
        if verb == "Authenticate" and isinstance(ident, str):
            self.auth_id = ident
        elif verb is not None and isinstance(topics, list):
            named = [topic for topic in topics if isinstance(topic, str)]
            if isinstance(ident, str):
                self.pending[ident] = Operation(verb, named, due_ns=1 << 62)
            self.desk.overheard(named, verb == "Subscribe")

    def error(self, code: str, text: str, wait: Any, now_ns: int, *, typed: bool) -> list[Output]:
        """Take an error that answers no operation; `typed`: it is a `header` message of type error (rules R3, R19).

        Raises: HandshakeRefused where such a message says that the keys are bad.
        """
        word = code.lower()
        if word == "toomanyrequests":
            until = now_ns + int(self.shared.pause_secs(wait) * 1e9)
            if not self.inband and not self.heard_data and self.desk.sent:
                # nothing says which request it refused: all of them, as nothing came yet
                self.later.append(Operation("Subscribe", list(self.desk.sent), due_ns=until))
            return [_quota(code, text or "too many requests", until, "pause")]
        if typed and word in _CREDENTIALS:
            raise HandshakeRefused(
                f"eToro refused the keys: {code}{f': {text}' if text else ''}", code=code, action="fatal"
            )
        return [Status(event="notice", code=code or "error", text=text or None, action="ignore")]


def _quota(code: str, text: str, until_ns: int, action: str) -> Status:
    return Status(event="quota", code=code, text=text, until=until_ns, action=action)


def _count(topics: Sequence[str]) -> str:
    return f"{len(topics)} topic{'s' if len(topics) != 1 else ''}"
