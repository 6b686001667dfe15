"""What the simulator does wrong on request, each fault a field of `Faults`.

The server reads them at every step, so a test may change them while connections are open. "After n" and "every n"
count data messages of one connection from the moment the faults are set; acknowledgements and heartbeats do not count.
"""

from dataclasses import dataclass, fields
from random import Random

from relay.simulator.base import Close

GARBAGE_TEXT: tuple[bytes, ...] = (
    b"",
    b"{",
    b"null",
    b"[]",
    b"17",
    b'"text"',
    b"<html><body>502 Bad Gateway</body></html>",
    b'{"type":"no such type","channel":"no such channel"}',
    b'{"price":1e999999999}',
    b'{"type":null,"symbol":{}}',
    b"[" * 2000 + b"]" * 2000,
    b'{"a":' * 2000 + b"1" + b"}" * 2000,
    b"\xff\xfe not UTF-8",
)
"""Text frames that no provider sends: broken JSON, other JSON, deep JSON, another language, no text at all."""
LATE_BY = 20
GARBAGE_BINARY: tuple[bytes, ...] = (b"", b"\x00\x01\x02\xff", b"\x1f\x8b\x08\x00broken gzip", b"\xff" * 300)


END_NOTICE_SECS = 5.0
"""Time from the notice of a planned end to the end."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The faults of one provider's side. The default: none."""

    connections: int | None = None
    """Only the first n connections (counted from the moment the faults are set) are faulty; None: all."""

    refuse_auth: bool = False
    """No key is right."""
    refuse_upgrade: int = 0
    """Answer the upgrade with this HTTP status; 0: do not."""
    refuse_rest: int = 0
    """Answer REST calls with this HTTP status; 0: do not."""
    hang: bool = False
    """Accept TCP, never answer the upgrade."""
    accept_and_close: int = 0
    """Accept the upgrade, then close with this code at once; 0: do not."""
    silence: bool = False
    """Accept the upgrade, read, send nothing at all."""

    drop_every_secs: float = 0
    """Abort TCP when a connection is this old; 0: never."""
    end_secs: float = 0
    """End a connection that is this old as planned: say so where the provider would, close with 1001 END_NOTICE_SECS
    later; 0: never."""
    drop_after: int = 0
    """Abort TCP after n data messages; 0: never."""
    close_after: tuple[int, int] | None = None
    """Close after n data messages, with a code: (n, code)."""
    stall_after: int | None = None
    """Where data message n + 1 would go, go silent and stay open: no data, no heartbeats, no answers."""
    mute: bool = False
    """Heartbeats and answers go on, data does not come."""

    garbage_every: int = 0
    """A text frame of garbage behind each n data messages; 0: none."""
    binary_garbage_every: int = 0
    """A binary frame of garbage behind each n data messages; 0: none."""
    slow_secs: float = 0
    """Wait this long before each frame."""
    jump_every: int = 0
    """Lose what would come next, each n data messages, so that numbers jump; 0: never."""
    repeat_every: int = 0
    """Send the last data message twice, each n data messages; 0: never."""
    late_every: int = 0
    """Send a data message late, behind the LATE_BY next ones, each n data messages; 0: never."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, (int, float)) and value < 0:
                raise ValueError(f"{item.name} must not be negative: {value}")
        for name in ("refuse_upgrade", "refuse_rest"):
            status = getattr(self, name)
            # 1xx and 2xx answers are no refusals; websockets would take 101 for an accepted upgrade
            if status and not 300 <= status <= 599:
                raise ValueError(f"{name} takes an HTTP status from 300 to 599: {status}")
        for code in (self.accept_and_close, self.close_after[1] if self.close_after else 0):
            if code and not sendable(code):
                raise ValueError(f"not a close code that may be sent: {code}")
        if self.close_after is not None and self.close_after[0] < 1:
            raise ValueError(f"close_after counts from 1: {self.close_after[0]} (accept_and_close closes at once)")

    @property
    def touches_data(self) -> bool:
        """Tell whether single data messages are touched, so that the server must look at each."""
        return bool(
            self.drop_after
            or self.close_after
            or self.stall_after is not None
            or self.garbage_every
            or self.binary_garbage_every
            or self.slow_secs
            or self.jump_every
            or self.repeat_every
            or self.late_every
        )

    @property
    def closing(self) -> Close | None:
        """What `close_after` closes with."""
        return Close(self.close_after[1], "simulated close") if self.close_after else None


NO_FAULTS = Faults()


def sendable(code: int) -> bool:
    """Tell whether RFC 6455 lets a peer send this close code."""
    return code in {1000, 1001, 1002, 1003} or 1007 <= code <= 1014 or 3000 <= code <= 4999


def garbage_text(random: Random) -> bytes:
    """Pick one text frame of garbage; not always UTF-8."""
    return random.choice(GARBAGE_TEXT)


def garbage_binary(random: Random) -> bytes:
    """Pick one binary frame of garbage."""
    return random.choice(GARBAGE_BINARY)
