"""What stands in a journal: one JSON line a record, in one order over all connections of a relay. Pure.

    {"do":"header","t":..,"data":{..}}                    first in each file: who records, and from what state on;
                                                          where providers or connections come or go, a file begins
    {"do":"made","conn":"coinapi/1","t":..,"data":{..}}   a provider object for a connection that is about to be tried
    {"do":"opened","conn":..,"t":..}                      the WebSocket is open
    {"conn":..,"t":..,"frame":".."}                       received; `frame64`, base64, where it is no UTF-8 text;
                                                          `binary` where it came as a binary message
    {"do":"out","conn":..,"t":..,"data":{..}}             sent, secrets masked
    {"do":"tick" | "reply" | "subscribe" | "unsubscribe" | "closing","conn":..,"t":..}   the provider was asked
    {"do":"closed","conn":..,"t":..,"data":{..}}          the session, or the try, ended; and what was decided
    {"do":"withheld","conn":..,"t":..,"data":{..}}        something of an account that is not recorded
    {"do":"watch" | "stopped","t":..}                     the relay looked for stale topics; it was stopped
    {"do":"subscriptions","t":..,"data":{..}}             a provider subscribes to something else now
    {"do":"aside","t":..,"data":{..}}                     statuses whose cause is not in the journal (Redis, the disk)
    {"do":"lost","t":..,"data":{..}}                      records that could not be written

`t` is in ns since 1970. A record stands before what it causes. `conn` names a session: while a planned rollover has two
of one connection, the second one ends with `+` (`binance/1+`), and keeps that name to its end.
"""

import base64
from typing import Any

import msgspec
from msgspec import Struct

from relay.providers.base import Frame, Reply, Subscription

FORMAT = 2
"""Raised when an older reader would misunderstand what is written."""


class Record(Struct, gc=False):
    """One line, read."""

    do: str = "in"
    t: int = 0
    conn: str = ""
    frame: str | None = None
    frame64: str | None = None
    binary: bool = False
    data: msgspec.Raw = msgspec.Raw(b"{}")


class Connection(Struct):
    """One planned connection in the header."""

    label: str
    subscriptions: list[Subscription]


class ProviderHeader(Struct, kw_only=True):
    """What a replay must know of one configured provider."""

    type: str
    options: dict[str, Any]
    """As in relay.yaml, secrets masked."""
    subscriptions: list[Subscription]
    connections: list[Connection]
    account: str = "main"
    origin: str | None = None
    prefix: str | None = None
    """Where its topics have another prefix than the relay's."""
    book_snapshot_every: int = 5000
    """As `Shared.book_snapshot_every`, which the relay sets."""
    state: Any = None
    """What `Shared.load_state` was given at the start; secrets masked."""
    since: int = 0
    """When the relay took it in, in ns: another time than in the file before means that a reload began it anew."""


class Header(Struct, kw_only=True):
    """The first record of each file."""

    format: int
    relay: str
    run: int
    file: int
    """Number of this file within the run, from 1."""
    version: str
    prefix: str = ""
    templates: dict[str, str] = {}
    merge: bool = False
    accounts: bool = False
    """Whether account messages are recorded."""
    providers: dict[str, ProviderHeader] = {}
    earlier: dict[str, str] = {}
    """Newest entries of earlier runs by topic."""
    before: dict[str, str] = {}
    """Bodies of those that carry a provider's number, where the spool has them: a run's first gap counts from there."""
    topics: dict[str, tuple[str, str, int]] = {}
    """Topics at the beginning of this file: kind, provider, last number given."""
    open: list[str] = []
    """Connections whose session began in an earlier file."""


class Ended(Struct, omit_defaults=True):
    """The data of `closed`."""

    error: bool = False
    text: str = ""
    error_code: str = ""
    code: int | None = None
    reason: str = ""
    kind: str | None = None
    """What was decided: retry, slow, fatal, until; joined, replaced: another session has taken over; None: nothing, it
    was stopped on purpose."""
    delay_secs: float = 0.0
    attempt: int = 0


class Withheld(Struct, omit_defaults=True):
    """The data of `withheld` and `aside`: what a replay must know to number what follows as it was."""

    status: int = 0
    """Last number given in the status topic."""
    ids: int | None = None
    """`Shared`'s counter of the connection's provider."""
    bytes: int = 0


class ReplyData(Struct, omit_defaults=True):
    """The data of `reply`."""

    tag: str
    status: int
    body: str = ""
    body64: str | None = None
    headers: dict[str, str] = {}
    error: str = ""


class Lost(Struct):
    """The data of `lost`."""

    records: int
    from_ns: int
    why: str = ""


class Changed(Struct):
    """The data of `made`, `subscribe`, `unsubscribe` and `subscriptions`."""

    subscriptions: list[Subscription] | None = None
    """`made`: None where they are the header's."""
    provider: str = ""
    connections: list[Connection] = []
    """`subscriptions`: how they are dealt from now on."""


# -- writing -----------------------------------------------------------------------------------------------------


class Received(Struct, gc=False, omit_defaults=True):
    """A received frame as its line is written: structs in one call are three times as fast as lines by hand."""

    conn: str
    t: int
    binary: bool = False
    frame: str | None = None
    frame64: str | None = None


class Other(Struct, gc=False, omit_defaults=True):
    """Any other record as its line is written."""

    do: str
    conn: str = ""
    t: int = 0
    data: Any = None


encode_lines = msgspec.json.Encoder().encode_lines
"""Records (Received, Other) to bytes of whole lines."""


def received(conn: str, frame: Frame) -> Received:
    """The record of a received frame."""
    try:
        return Received(conn, frame.received_ns, frame.binary, frame.data.decode())
    except UnicodeDecodeError:
        return undecoded(conn, frame)


def undecoded(conn: str, frame: Frame) -> Received:
    """The record of a received frame that is no UTF-8 text."""
    return Received(conn, frame.received_ns, frame.binary, None, base64.b64encode(frame.data).decode())


def line(do: str, now_ns: int, conn: str = "", data: Any = None) -> bytes:
    """Write one record that is no received frame."""
    return encode_lines([Other(do, conn, now_ns, data)])


def reply_data(reply: Reply) -> ReplyData:
    """What is recorded of a REST reply."""
    try:
        body, body64 = reply.body.decode(), None
    except UnicodeDecodeError:
        body, body64 = "", base64.b64encode(reply.body).decode()
    return ReplyData(reply.tag, reply.status, body, body64, dict(reply.headers), reply.error)


# -- reading -----------------------------------------------------------------------------------------------------

decode_lines = msgspec.json.Decoder(Record).decode_lines
"""Bytes of whole lines to records. Raises: msgspec.MsgspecError."""


def frame_of(record: Record, now_ns: int) -> Frame:
    """The received frame of an `in` record."""
    text = record.frame
    data = text.encode() if text is not None else base64.b64decode(record.frame64 or "")
    return Frame(now_ns, data, record.binary)


def reply_of(record: Record) -> Reply:
    """The REST reply of a `reply` record."""
    found = data_of(record, ReplyData)
    body = base64.b64decode(found.body64) if found.body64 is not None else found.body.encode()
    return Reply(found.tag, found.status, body, found.headers, found.error)


def data_of(record: Record, kind: type[Any]) -> Any:
    """The data of a record. Raises: msgspec.MsgspecError."""
    return msgspec.json.decode(record.data, type=kind)
