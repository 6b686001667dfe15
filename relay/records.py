"""What stands in a journal: one JSON line a record, in one order over all connections of a relay. Pure.

    {"do":"header","t":..,"data":{..}}                    first in each file: who records, and from what state on;
                                                          where providers or connections come or go, a file begins
    {"do":"made","conn":"coinapi/1","t":..,"data":{..}}   a provider object for a connection that is about to be tried
    {"do":"opened","conn":..,"t":..}                      the WebSocket is open
    {"conn":..,"t":..,"json":{..}}                        received: a JSON object on one line, as it came
    {"conn":..,"t":..,"frame":".."}                       received: any other text; `frame64`, base64, where it is no
                                                          UTF-8; `binary` where it came as a binary message
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
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain, repeat
from operator import itemgetter
from typing import Any

import msgspec
from msgspec import Struct

from relay.providers.base import Frame, Reply, Subscription

FORMAT = 3
"""Raised when an older reader would misunderstand what is written."""


class Record(Struct, gc=False):
    """One line, read."""

    do: str = "in"
    t: int = 0
    conn: str = ""
    json: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
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
    rejects: dict[str, int] = {}
    """Last numbers given in the topics of rejects that this brought."""


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
        return Received(conn, frame.received_ns, frame.binary, None, base64.b64encode(frame.data).decode())


_FIRST, _LAST = itemgetter(0), itemgetter(-1)
_OPENED, _CLOSED = set(b"{"), set(b"}")


def frames(conn: str, received_frames: Sequence[Frame], finds: Callable[[bytes], bool], *, sound: bool) -> bytes | None:
    """The lines of frames received one after another, at least one; None where `finds` finds something in them. HOT.

    `sound`: none of them was rejected, so that what looks like a JSON object is one: it stands in its line as it came,
    which is cheaper than a JSON string of it. All are looked at together, by a few calls.
    """
    times, data, binary = zip(*received_frames, strict=True)
    if sound and True not in binary and b"" not in data:
        joined = b"".join(data)
        objects = set(map(_FIRST, data)) == _OPENED and set(map(_LAST, data)) == _CLOSED
        if objects and joined.isascii() and b"\n" not in joined:
            if finds(joined):
                return None
            moments = msgspec.json.encode(times)[1:-1].split(b",")
            begin = repeat(b'{"conn":%b,"t":' % msgspec.json.encode(conn))
            return b"".join(chain.from_iterable(zip(begin, moments, repeat(b',"json":'), data, repeat(b"}\n"))))
    out = encode_lines([received(conn, frame) for frame in received_frames])
    return None if finds(out) else out


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

_decode = msgspec.json.Decoder(Record).decode
_RECEIVED = re.compile(rb'\{"conn":("(?:[^"\\]|\\.)*"),"t":([0-9]+),"json":').match


@cache
def _conn(text: bytes) -> str:
    return msgspec.json.decode(text, type=str)


def decode_lines(lines: bytes) -> list[Record]:
    """Bytes of whole lines to records. Raises: msgspec.MsgspecError.

    A line with `json` is cut by its beginning: what a provider sent is no part of our own line, whatever it looks like.
    """
    found: list[Record] = []
    for one in lines.split(b"\n"):
        begin = _RECEIVED(one)
        if begin is not None and one[-1] == 125:  # }
            conn, moment = begin.groups()
            found.append(Record("in", int(moment), _conn(conn), msgspec.Raw(one[begin.end() : -1])))
        elif one:
            found.append(_decode(one))
    return found


def plain(one: bytes) -> bytes:
    """A line with its frame as JSON text: `jq -r .frame` gives it to the byte, while a number of `json` goes through
    jq's own idea of numbers."""
    if _RECEIVED(one) is None:
        return one + b"\n"
    (record,) = decode_lines(one)
    return encode_lines([received(record.conn, frame_of(record, record.t))])


def frame_of(record: Record, now_ns: int) -> Frame:
    """The received frame of an `in` record."""
    if record.json is not msgspec.UNSET:
        return Frame(now_ns, bytes(record.json), False)
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
