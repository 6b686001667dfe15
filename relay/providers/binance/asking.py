"""What Binance was asked for over one WebSocket, and what it answered by id.

Many streams go into one SUBSCRIBE, because five messages a second are allowed. One wrong stream may refuse a whole
message: it is halved and asked again until the wrong one stands alone.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from relay.errors import SessionError, SubscribeRefused
from relay.model import Status
from relay.providers.base import Output, Send, Subscription, SymbolTable
from relay.providers.binance.names import RAW_STAR

ACK_NS = 10_000_000_000
"""How long a request may stay unanswered."""
STREAMS_A_MESSAGE = 200
"""Some 5 kB of names."""
ERROR_TEXT_MAX = 500


class Wanted(NamedTuple):
    """One stream and what it was asked for."""

    stream: str
    subscription: Subscription


class _Ask(NamedTuple):
    verb: str
    wanted: tuple[Wanted, ...]
    deadline_ns: int


class Answered(NamedTuple):
    """What an answer led to: outputs, and the subscriptions that hold from now on."""

    outputs: list[Output]
    held: list[Subscription]


class Asking:
    """The requests of one session. Sends are added to `out`."""

    def __init__(self, names: SymbolTable, next_id: Any) -> None:
        self.out: list[Send] = []
        self.streams: dict[Subscription, str] = {}
        """What is subscribed to or asked for, with its stream."""
        self._refused = False
        self._names, self._next_id = names, next_id
        self._open: dict[int, _Ask] = {}

    @property
    def answered(self) -> bool:
        """Whether everything that was asked for has been answered."""
        return not self.out and not self._open

    def add(self, wanted: Iterable[tuple[Subscription, str]], now_ns: int) -> None:
        """Ask for streams that are not asked for yet."""
        new: list[Wanted] = []
        for sub, stream in wanted:
            if sub.raw != RAW_STAR and sub not in self.streams:
                self.streams[sub] = stream
                new.append(Wanted(stream, sub))
        self._send("SUBSCRIBE", new, now_ns)

    def remove(self, subscriptions: Iterable[Subscription], now_ns: int) -> None:
        """Give streams back; the answer confirms it."""
        gone = [Wanted(self.streams.pop(sub), sub) for sub in subscriptions if sub in self.streams]
        self._send("UNSUBSCRIBE", gone, now_ns)

    def accepted(self, number: Any, now_ns: int) -> Answered:
        """Take `{"result": null, "id": ...}`."""
        ask = self._open.pop(number, None) if number.__class__ is int else None
        if ask is None:
            return Answered([], [])
        if ask.verb == "UNSUBSCRIBE":
            return Answered([self.status("unsubscribed", one.subscription) for one in ask.wanted], [])
        held = [one.subscription for one in ask.wanted if one.subscription in self.streams]
        done = not any(other.verb == "SUBSCRIBE" for other in self._open.values())
        return Answered([Status(event="subscribed")] if done and self.streams else [], held)

    def complained(self, code: Any, text: Any, number: Any, now_ns: int) -> list[Output]:
        """Take an error: about the request of that id, else about none in particular."""
        said = (text if text.__class__ is str else "error without a text")[:ERROR_TEXT_MAX]
        name = f"binance_{code}" if code.__class__ is int else "provider_error"
        ask = self._open.pop(number, None) if number.__class__ is int else None
        if ask is None:
            return [Status(event="notice", code=name, text=said)]
        if ask.verb == "UNSUBSCRIBE":
            return [Status(event="notice", code=name, text=f"unsubscribe: {said}")]
        wanted = [one for one in ask.wanted if one.subscription in self.streams]
        if len(wanted) > 1:
            half = len(wanted) // 2
            self._send("SUBSCRIBE", wanted[:half], now_ns)
            self._send("SUBSCRIBE", wanted[half:], now_ns)
            return []
        return [self.refuse(one.subscription, name, said) for one in wanted]

    def refuse(self, sub: Subscription, code: str, text: str) -> Status:
        """Give up one subscription."""
        self.streams.pop(sub, None)
        self._refused = True
        return self.status("refused", sub, code=code, text=text)

    def tick(self, now_ns: int) -> None:
        """Raises: SessionError where a request stayed unanswered."""
        for ask in self._open.values():
            if now_ns >= ask.deadline_ns:
                some = ", ".join(one.stream for one in ask.wanted[:5])
                raise SessionError(
                    f"no answer to {ask.verb.lower()} within {ACK_NS // 1_000_000_000} s: {some}", code="ack_timeout"
                )

    def check_left(self, waiting: int) -> None:
        """Raises: SubscribeRefused where everything was refused."""
        if self._refused and not self.streams and not waiting:
            raise SubscribeRefused("nothing is left to subscribe to", code="nothing_left", action="slow")

    def status(self, event: Any, sub: Subscription, **fields: Any) -> Status:
        symbol, venue = self._names[sub.raw]
        return Status(event=event, channel=sub.channel, raw_symbol=sub.raw, symbol=symbol, venue=venue, **fields)

    def _send(self, verb: str, wanted: Sequence[Wanted], now_ns: int) -> None:
        for start in range(0, len(wanted), STREAMS_A_MESSAGE):
            some = tuple(wanted[start : start + STREAMS_A_MESSAGE])
            number = self._next_id()
            message = {"method": verb, "params": [one.stream for one in some], "id": number}
            self.out.append(Send(msgspec.json.encode(message).decode(), subscribes=1))
            # messages go out a few a second: those further back in the row have longer
            wait = ACK_NS + len(self._open) * 1_000_000_000
            self._open[number] = _Ask(verb, some, now_ns + wait)
