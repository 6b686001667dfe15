"""The bus as an AsyncAPI 3 document: every topic, what it carries, and how its stream works (in `x-` fields).

Made from the messages' JSON Schemas and the default topic names; `relay schema` writes it beside them. It is meant to
be enough for somebody who has never seen this code.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from relay import __version__, codec, model, schema
from relay.model import Header
from relay.topics import DEFAULT_TEMPLATES

VERSION = "3.0.0"
LENGTH_MAX = 10_000
"""Entries that a stream keeps where relay.yaml does not say otherwise; a test compares."""

_DESCRIPTION = """\
Every topic is a Redis Stream and a Redis pub/sub channel of the same name; both carry the same bytes: one JSON document
a message. Read either. The stream waits for you while you are away, up to its length; the channel is faster by one
command and forgets you when you are slow or gone.

- **Stream**: `XREAD COUNT 500 BLOCK 2000 STREAMS <topic> <last id>`; the field `data` of each entry is the document.
  Keep the id of the last entry that you have handled, and give it again after a restart. Begin with `0-0` (all that is
  kept) or with the id of the newest entry (`XREVRANGE <topic> + - COUNT 1`); not with `$`, because what comes between
  two calls with `$` is lost. A topic that does not exist yet can be waited for: give `0-0`.
- **Channel**: `SUBSCRIBE <topic>`. The id of a message's stream entry is `<floor(ts_recv / 1000000)>-<seq>`: after a
  hole in `seq`, or a new connection, read what you missed by `XRANGE <topic> (<id of your last> +`. Subscribe first,
  read the stream then, and drop from the channel what you have had.
- **Numbering**: `seq` counts from 1 within `run` and topic, without holes, statuses included. A greater `run` is a new
  start of the relay: `seq` begins at 1 again. If the next number is not the expected one, *you* have missed something;
  where the stream does not have it either, it was trimmed. When `run` changes, read the stream behind your last id too.
- **What the provider never delivered** is said in band: a `status` message with `event: gap` stands in the topic before
  the first message behind the hole. `event: stale`: show no older price as live until `fresh` or the next message. The
  status topic has a copy of each, whose `topic` names the topic that it concerns.
- **One source a topic**: one provider (or one venue of it) numbers and orders a topic; `provider` says which. With
  `merge: true` in relay.yaml several may share it.
- **Numbers** that are prices, sizes or rates are decimal text with the provider's digits; parse them as decimals.
- **Times** are integers, nanoseconds since 1970-01-01 UTC, and exceed 2^53: a JavaScript `JSON.parse` is up to 128 ns
  off, which near a full millisecond makes the wrong entry id. Take the digits from the text and use `BigInt`.
- **Absent means unknown.** There is no null. New fields and new kinds of messages may come: ignore what is new to you.
- **Which topics are there**: `HKEYS relay:topics` (each value is JSON: `kind`, `provider`, `relay`, `first_seen`). A
  topic appears with its first message; look again now and then. Names can be changed by templates in relay.yaml; the
  ones here are the defaults.
- **Prefix**: a relay with `redis.prefix` puts it before every topic and before `relay:topics`. Made-up prices (each
  message bears `origin: simulated`) stand under `sim.`, except on the bundled server of a relay that simulates all.
"""

_WORDS: Mapping[str, str] = {
    "provider": "The provider's name in relay.yaml.",
    "venue": "Where it happens, as the provider names it.",
    "symbol": "Canonical symbol: EUR-USD, BTC-USDT, AAPL, BTC-USDT-PERP, MSFT-20260619-450-C. `A-Z 0-9 . _ -`.",
    "interval": "Length of the bars: 1m, 1h, 1d ...",
    "account": "The account's label in relay.yaml.",
    "relay": "The relay's `name` in relay.yaml.",
}
_CARRIES: Mapping[str, tuple[type[Header], ...]] = {
    "quotes": (model.Quote, model.Status),
    "trades": (model.Trade, model.Status),
    "bars": (model.Bar, model.Status),
    "rates": (model.Rate, model.Status),
    "greeks": (model.Greeks, model.Status),
    "instruments": (model.Instrument, model.Status),
    "books": (model.BookSnapshot, model.BookDelta, model.Status),
    "orders": (model.Order, model.Status),
    "positions": (model.Position, model.Status),
    "balances": (model.Balance, model.Status),
    "account": (model.Account, model.Status),
    "status": (model.Status,),
    "deadletter": (model.Reject,),
}
_MEANS: Mapping[str, str] = {
    "quotes": "Best bid and ask of a symbol, and gap, stale and fresh in band.",
    "trades": "Executions of a symbol, and gap, stale and fresh in band.",
    "bars": "Bars of a symbol; the same bar comes again until `closed` is true.",
    "rates": "Reference values of a symbol.",
    "greeks": "Sensitivities of an option.",
    "instruments": "What is known of a symbol.",
    "books": "Order book: a snapshot replaces it, a delta sets the sizes it names; a size of zero (`0`, `0.000`) "
    "removes the level. Prices are compared as numbers; keep the sides sorted yourself. Begin with a snapshot: what is "
    "kept of a stream may begin with deltas. Behind a `gap` the book is not right until the next snapshot.",
    "orders": "Orders of an account.",
    "positions": "Positions of an account.",
    "balances": "Balances of an account.",
    "account": "What an account stream says and has no struct yet.",
    "status": "Every notice of the relay: opened, closed, refused, quota ..., and a copy of each gap, stale and fresh.",
    "deadletter": "Frames that could not be used, with the reason.",
}
_HEAD: dict[str, Any] = {
    "provider": "coinbase", "symbol": "BTC-USD", "raw_symbol": "BTC-USD", "ts_event": 1_772_359_200_123_456_000,
    "ts_recv": 1_772_359_200_130_000_000, "run": 1_772_359_100_000, "seq": 42,
}  # fmt: skip
_ACCOUNT: dict[str, Any] = {
    "provider": "aries", "ts_recv": 1_772_359_200_130_000_000, "run": 1_772_359_100_000, "seq": 7, "account": "main",
}  # fmt: skip
_EXAMPLES: tuple[Header, ...] = (
    model.Quote(**_HEAD, bid="61250.57", ask="61250.58", bid_size="0.10", ask_size="2", last="61250.58"),
    model.Trade(**_HEAD, price="61250.58", size="0.00513192", side="buy", id="82047307", src_seq=82047307),
    model.Bar(
        **_HEAD, interval="1m", start=1_772_359_140_000_000_000, end=1_772_359_200_000_000_000, open="61250.10",
        high="61260.00", low="61249.99", close="61250.58", volume="12.5", closed=True,
    ),
    model.BookSnapshot(**_HEAD, bids=(("61250.57", "0.10"), ("61250.50", "3")), asks=(("61250.58", "2"),), depth=20),
    model.BookDelta(**_HEAD, bids=(("61250.57", "0"),), asks=(), src_seq=1001, prev_seq=1000),
    model.Rate(**_HEAD, kind="index", value="61250.123"),
    model.Greeks(**_HEAD, delta="0.52", iv="0.61"),
    model.Instrument(**_HEAD, base="BTC", quote="USD", name="Bitcoin", price_precision=2, tick_size="0.01"),
    model.Order(**_ACCOUNT, order_id="17", state="partially_filled", side="sell", price="10.50", size="5", filled="2"),
    model.Position(**_ACCOUNT, symbol="AAPL", raw_symbol="AAPL", size="-3", average_price="187.20"),
    model.Balance(**_ACCOUNT, currency="USD", total="1000.00", available="250.00"),
    model.Account(**_ACCOUNT, kind="pnl", data={"unrealized": "12.5"}),
    model.Status(
        **_HEAD, event="gap", channel="trades", topic="trades.BTC-USD", reason="sequence_jump",
        first_missing=82047300, last_missing=82047306, missing=7,
        from_ns=1_772_359_199_000_000_000, to_ns=1_772_359_200_130_000_000,
    ),
    model.Reject(
        provider="coinbase", ts_recv=1_772_359_200_130_000_000, run=1_772_359_100_000, seq=1, reason="not_json",
        detail="it ends too early", frame='{"type":"ma',
    ),
)  # fmt: skip


def document() -> dict[str, Any]:
    """Give the whole document."""
    channels = dict(_channels())
    return {
        "asyncapi": VERSION,
        "info": {
            "title": "relay",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "redis": {
                "host": "127.0.0.1:6379",
                "protocol": "redis",
                "description": "Redis 7.0 or newer, or Valkey 7.2 or newer. `relay run` prints the address of its own.",
            }
        },
        "channels": channels,
        "operations": {
            f"send_{name}": {
                "action": "send",
                "channel": _ref("channels", name),
                "summary": "The relay appends to the stream and publishes on the channel, in this order.",
            }
            for name in channels
        },
        "components": {
            "messages": dict(_messages()),
            "schemas": {name: _draft7(found) for name, found in schema.documents().items()},
        },
        "x-relay": {
            "topics-key": "relay:topics",
            "topics-value": {"kind": "trades", "provider": "coinbase", "relay": "relay", "first_seen": 1772359100000},
            "prefix": "",
            "prefix-simulated": "sim.",
        },
    }


def _channels() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for kind, template in DEFAULT_TEMPLATES.items():
        head, _, rest = template.partition("[")
        part, _, tail = rest.partition("]")
        forms = {kind: head + tail} | ({f"{kind}_by_venue": head + part + tail} if part else {})
        for name, address in forms.items():
            words = [word for word in _WORDS if f"{{{word}}}" in address]
            found.append((
                name,
                {
                    "address": address,
                    "description": _MEANS[kind],
                    "servers": [_ref("servers", "redis")],
                    "parameters": {word: {"description": _WORDS[word]} for word in words},
                    "messages": {_tag(cls): _ref("components/messages", _tag(cls)) for cls in _CARRIES[kind]},
                    "x-stream": {
                        "key": address,
                        "field": "data",
                        "entry-id": "<floor(ts_recv / 1000000)>-<seq>",
                        "length": LENGTH_MAX,
                        "trimming": "oldest first, approximate: a stream may hold somewhat more than `length`",
                        "pubsub-channel": address,
                    },
                },
            ))  # fmt: skip
    return found


def _messages() -> list[tuple[str, dict[str, Any]]]:
    examples = {type(one): msgspec.json.decode(codec.encode(one)) for one in _EXAMPLES}
    return [
        (
            _tag(cls),
            {
                "name": _tag(cls),
                "summary": (cls.__doc__ or "").split("\n")[0],
                "contentType": "application/json",
                "payload": _ref("components/schemas", _tag(cls)),
                "examples": [{"name": _tag(cls), "payload": examples[cls]}],
            },
        )
        for cls in model.MESSAGES
    ]


def _tag(cls: type[Header]) -> str:
    return str(cls.__struct_config__.tag)


def _ref(place: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/{place}/{name}"}


def _draft7(found: Any) -> Any:
    """A schema in the dialect that AsyncAPI's tools know: tuples are written differently there."""
    if isinstance(found, list):
        return [_draft7(one) for one in found]
    if not isinstance(found, dict):
        return found
    made = {name: _draft7(value) for name, value in found.items() if name != "$schema"}
    if "prefixItems" in made:
        made["items"], made["additionalItems"] = made.pop("prefixItems"), False
    return made
