"""What `relay top` and `relay status` show: a status document as lines of a given width and height. Pure.

Every state is a word, so that nothing is lost without colour. No line is wider than asked for, and not more lines come.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

SORTS = ("name", "rate", "age", "count")
FILTER_CHARS_MAX = 60
HELP = "space pause  s sort  p provider  / filter  up/down page  q quit"
HELP_SHORT = "space s p / up down q"
"""The same keys, where there is no room for what they do."""
TYPING = "enter done  esc clear"


@dataclass
class View:
    """What the person at the keyboard wants to see."""

    sort: str = "rate"
    filter: str = ""
    provider: str = ""
    offset: int = 0
    paused: bool = False
    typing: bool = False
    trouble: str = ""
    """Why the document is not of now."""
    cpu: float | None = None
    """Share of one core, from two documents."""


def press(view: View, key: str, providers: Sequence[str], page: int, matching: int) -> str:
    """Do what a key asks for; give `quit`, `ask` (another page of the relay is wanted) or `draw`."""
    if view.typing:
        if key in ("\r", "\n"):
            view.typing = False
        elif key == "\x1b":
            view.typing, view.filter = False, ""
        elif key in ("\x7f", "\b"):
            view.filter = view.filter[:-1]
        elif key.isprintable() and len(key) == 1 and len(view.filter) < FILTER_CHARS_MAX:
            view.filter += key
        else:
            return "draw"
        view.offset = 0
        return "ask"
    if key in ("q", "Q", "\x03"):
        return "quit"
    if key == " ":
        view.paused = not view.paused
        return "draw" if view.paused else "ask"
    if key == "/":
        view.typing = True
        return "draw"
    last = max(0, (matching - 1) // max(1, page) * page)
    moves: dict[str, Callable[[], None]] = {
        "s": lambda: _set(view, sort=SORTS[(SORTS.index(view.sort) + 1) % len(SORTS)], offset=0),
        "p": lambda: _set(view, provider=_after(view.provider, ["", *providers]), offset=0),
        "\x1b": lambda: _set(view, filter="", provider="", offset=0),
        "up": lambda: _set(view, offset=max(0, view.offset - page)),
        "down": lambda: _set(view, offset=min(last, view.offset + page)),
        "home": lambda: _set(view, offset=0),
        "end": lambda: _set(view, offset=last),
    }
    if key not in moves:
        return "draw"
    moves[key]()
    return "ask"


def _set(view: View, **changes: Any) -> None:
    for name, value in changes.items():
        setattr(view, name, value)


def _after(item: str, items: Sequence[str]) -> str:
    return items[(items.index(item) + 1) % len(items)] if item in items else items[0]


# -- the page ----------------------------------------------------------------------------------------------------


def lines(doc: dict[str, Any], view: View, width: int, height: int | None) -> list[Text]:
    """Lay a document out. `height` None: as many lines as it takes (`relay status`)."""
    out = _above(doc, view, width, height)
    topics = [_topic_row(topic, doc["now"]) for topic in doc["topics"]]
    room = len(topics) if height is None else max(0, height - len(out) - 2)
    out += _table(_TOPICS, topics[:room], width)
    if height is not None:
        out = out[: height - 1]
        out += [Text()] * (height - 1 - len(out))
        out.append(_foot(doc, view, min(room, len(topics)), width))
    return [_cut(line, width) for line in out]


def room_for_topics(doc: dict[str, Any], view: View, height: int) -> int:
    """How many topics a page of this height has room for."""
    return max(1, height - len(_above(doc, view, 80, height)) - 2)


def _above(doc: dict[str, Any], view: View, width: int, height: int | None) -> list[Text]:
    """Everything above the topics."""
    out = [_first(doc, view), _second(doc)]
    if doc.get("standby"):
        out.append(_standby(doc["standby"], doc["now"]))
    out += [
        Text(f"blocked  {plain(item['topic'])}: {plain(item['why'])}", "red") for item in doc["outbox"]["blocked"][:2]
    ]
    if "shards" in doc:
        out.append(_shards(doc))
    if view.trouble:
        out.append(Text(view.trouble, "reverse"))
    out.append(Text())
    rows = [row for provider in doc["providers"] for row in _provider_rows(provider, doc["now"])]
    room = len(rows) if height is None else max(3, (height - len(out)) // 2 - 1)
    out += _table(_PROVIDERS, rows[:room], width)
    if len(rows) > room:
        out.append(Text(f"  and {len(rows) - room} more connections", "dim"))
    out.append(Text())
    return out


def _first(doc: dict[str, Any], view: View) -> Text:
    rates = [provider["rate"] for provider in doc["providers"]]
    rate = None if not rates or None in rates else sum(rates)
    text = Text()
    text.append(f"relay {doc['relay']}  ", "bold")
    if doc["stopping"]:
        text.append("STOPPING", "yellow")
    elif doc["ready"]:
        text.append("STANDBY" if doc["why"] == "standby" else "READY", "green")
    else:
        text.append(f"NOT READY: {doc['why']}", "red")
    if view.paused:
        text.append("  PAUSED", "reverse")
    text.append(f"  up {span(doc['now'] / 1e9 - doc['run'] / 1000)}  {_rate(rate)} msg/s")
    if view.cpu is not None:
        text.append(f"  cpu {view.cpu:.0%}")
    text.append(f"  mem {size(doc['memory_bytes'])}  lag {_ms(doc['loop_lag_ms'])}  v{doc['version']}")
    return text


def _second(doc: dict[str, Any]) -> Text:
    redis, outbox = doc["redis"], doc["outbox"]
    text = Text("Redis ")
    text.append(redis["state"], "green" if redis["state"] == "flowing" else "red")
    if redis.get("away"):
        text.append(f" (away: {', '.join(redis['away'])})", "red")
    call = redis["call_ms"]
    text.append(f"  calls {_ms(call)}  waiting {outbox['entries']:,} ({size(outbox['bytes'])})")
    if outbox["full"]:
        text.append("  FULL: feeds wait", "red")
    stored = doc["receipt_to_stored_ms"]
    if stored["p50"] is not None:
        text.append(f"  stored within {_ms(stored)}")
    text.append(f"  {redis['url']}{' (bundled)' if redis['bundled'] else ''}")
    return text


def _shards(doc: dict[str, Any]) -> Text:
    """Each shard's number and rate; of one that is not well, what it is."""
    text = Text(f"shards {len(doc['shards'])} ")
    for shard in doc["shards"]:
        text.append(f"  {shard['number']} ", "dim")
        if shard["state"] != "up":
            why = f" ({plain(shard['why'])})" if shard.get("why") else ""
            text.append(f"{shard['state'].upper()}{why}", "red")
        elif "ready" not in shard:
            text.append("NO ANSWER", "yellow")
        elif not shard["ready"]:
            text.append("NOT READY", "red")
        else:
            stands_by = shard["role"] not in ("", "active")
            text.append(shard["role"] if stands_by else f"{_rate(shard['rate'])} msg/s")
        if shard["starts"] > 1:
            text.append(f" ({shard['starts'] - 1} restarts)", "yellow")
    return text


def _standby(doc: dict[str, Any], now: int) -> Text:
    """Which node writes, since when, at which epoch; and what this one is."""
    text = Text(f"{doc['role']} for {span((now - doc['since']) / 1e9)}")
    if doc["active"]:
        since = (
            f" for {span((now - doc['active_since']) / 1e9)}" if doc["active_since"] and doc["role"] != "active" else ""
        )
        text.append(f"  writer: {plain(doc['active'])}{since} at epoch {doc['epoch']}")
    else:
        text.append("  no node writes", "red")
    if doc["role"] != "active":
        text.append(f"  ring {doc['ring_secs']:.1f} s, {doc['ring_messages']:,} messages, {size(doc['ring_bytes'])}")
    if doc["why"]:
        text.append(f"  not ready to take over: {plain(doc['why'])}", "yellow")
    if doc["cold"] and doc["role"] != "active":
        text.append(f"  not connected until then: {', '.join(doc['cold'])}")
    return text


def _foot(doc: dict[str, Any], view: View, shown: int, width: int) -> Text:
    if view.typing:
        return Text(f"filter: {view.filter}_   {TYPING}", "bold")
    first = view.offset + 1 if shown else 0
    where = f"{first:,}-{view.offset + shown:,} of {doc['topics_matching']:,} topics by {view.sort}"
    if view.provider:
        where += f" of {view.provider}"
    if view.filter:
        where += f" with '{view.filter}'"
    text = HELP if cell_len(where) + 2 + len(HELP) <= width else HELP_SHORT
    pad = max(2, width - cell_len(where) - len(text))
    return Text(where + " " * pad + text, "dim")


# -- rows --------------------------------------------------------------------------------------------------------


class Column(NamedTuple):
    """`width` 0: what is left. Columns of a higher `rank` go first when it gets narrow."""

    title: str
    width: int
    right: bool = False
    rank: int = 0


_PROVIDERS = (
    Column("PROVIDER", 14),
    Column("CONN", 7, rank=4),
    Column("STATE", 10),
    Column("FOR", 6, True),
    Column("DATA", 6, True),
    Column("MSG/S", 7, True),
    Column("RECONN", 6, True),
    Column("GAPS", 5, True),
    Column("STALE", 5, True),
    Column("REJECTS", 7, True, 2),
    Column("TOPICS", 6, True, 3),
    Column("QUOTA", 7, True, 5),
    Column("WHY", 0),
)
_TOPICS = (
    Column("TOPIC", 30),
    Column("MSG/S", 7, True),
    Column("COUNT", 11, True, 1),
    Column("AGE", 6, True),
    Column("", 7),
    Column("LAST", 0),
)
_WIDE = {"TOPIC": 44}
WIDE_CHARS = 120
Row = list[tuple[str, str]]
"""Text and style of each column."""


def _table(columns: Sequence[Column], rows: Sequence[Row], width: int) -> list[Text]:
    def of(column: Column) -> int:
        return _WIDE.get(column.title, column.width) if width >= WIDE_CHARS else column.width

    kept = list(range(len(columns)))
    least = 24  # for the column that takes what is left
    while sum(of(columns[i]) + 1 for i in kept) + least > width:
        worst = max(kept, key=lambda i: columns[i].rank)
        if not columns[worst].rank:
            break
        kept.remove(worst)
    rest = max(0, width - sum(of(columns[i]) + 1 for i in kept if columns[i].width))
    out = []
    head: Row = [(column.title, "bold") for column in columns]
    for row in [head, *rows]:
        line = Text()
        for i in kept:
            text, style = row[i]
            wide = of(columns[i]) if columns[i].width else rest
            text = fit(text, wide)
            pad = " " * (wide - cell_len(text))
            line.append(pad + text if columns[i].right else text + pad, style)
            line.append(" ")
        out.append(line)
    return out


def _provider_rows(provider: dict[str, Any], now: int) -> list[Row]:
    rows: list[Row] = []
    links = provider["connections"]
    for number, link in enumerate(links):
        state = link["state"]
        style = {"up": "green", "given up": "red", "waiting": "yellow"}.get(state, "yellow")
        why = plain(link.get("why", "")) if state != "up" else ""
        if state == "waiting":
            left = max(0.0, (link["next"] - now) / 1e9)
            why = f"again in {span(left)}: {why}"
        since = link.get("since")
        first = number == 0
        data, stale = provider["last"], provider["stale"]
        if first and state == "up" and provider["simulated"]:
            why = "SIMULATED, made-up prices"
        rows.append(
            [
                (plain(provider["name"]) if first else "", ""),
                (plain(link["label"]), "dim"),
                (state.upper(), style),
                (span((now - since) / 1e9) if since else "-", ""),
                ((span((now - data) / 1e9) if data else "-") if first else "", ""),
                (_rate(provider["rate"]) if first else "", ""),
                (f"{max(0, link['connects'] - 1):,}", "yellow" if link["connects"] > 1 else ""),
                (f"{provider['gaps']:,}" if first else "", "yellow" if provider["gaps"] else ""),
                (f"{stale:,}" if first else "", "yellow" if stale else ""),
                (f"{provider['rejects']:,}" if first else "", "yellow" if provider["rejects"] else ""),
                (f"{provider['topics']:,}" if first else "", ""),
                (f"{provider['quota']:,}" if first and "quota" in provider else "", ""),
                (why, "" if state == "up" else style),
            ]
        )
    return rows


def _topic_row(topic: dict[str, Any], now: int) -> Row:
    last = topic.get("last")
    age = span((now - last["ts_recv"]) / 1e9) if last else "-"
    state, style = "", ""
    if topic.get("blocked"):
        state, style = "BLOCKED", "red"
    elif topic["stale"]:
        state, style = "STALE", "yellow"
    return [
        (plain(topic["name"]), ""),
        (_rate(topic["rate"]), ""),
        (f"{topic['count']:,}", ""),
        (age, ""),
        (state, style),
        (value(last) if last else "", style),
    ]


def value(message: dict[str, Any]) -> str:
    """The body of a message in a few characters."""
    kind = message.get("type")
    get = message.get
    if kind == "quote":
        prices = f"{get('bid', '-')} / {get('ask', '-')}"
        text = f"{prices}  {get('bid_size', '')} x {get('ask_size', '')}" if get("bid_size") else prices
        if get("mid") and not get("bid"):
            text = f"mid {get('mid')}"
    elif kind == "trade":
        text = " ".join(filter(None, (get("side"), get("size"), "@" if get("size") else "", get("price"))))
    elif kind == "bar":
        text = f"o {get('open')} h {get('high')} l {get('low')} c {get('close')} v {get('volume', '-')}"
        text += "" if get("closed") else " open"
    elif kind in ("book_snapshot", "book_delta"):
        bids, asks = get("bids") or [], get("asks") or []
        sides = [f"{side[0][1]}@{side[0][0]}" if side else "-" for side in (bids, asks)]
        text = f"{kind[5:]} {len(bids)}+{len(asks)} levels  {' / '.join(sides)}"
    elif kind == "status":
        text = " ".join(str(get(key)) for key in ("event", "reason", "code", "text") if get(key))
    else:
        skipped = {"type", "provider", "symbol", "raw_symbol", "ts_event", "ts_recv", "run", "seq", "src_seq", "origin"}
        text = " ".join(f"{key} {item}" for key, item in message.items() if key not in skipped)
    return plain(text)


# -- small words -------------------------------------------------------------------------------------------------


def plain(text: Any) -> str:
    """Foreign text: control characters are shown, not obeyed."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:400])


def fit(text: str, width: int) -> str:
    """Cut a text to a width in cells; what is cut ends in a dot-dot."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 2) + ".." if width > 2 else set_cell_size(text, width)


def span(secs: float) -> str:
    """A length of time in at most six characters."""
    secs = max(0.0, secs)
    if secs < 9.95:
        return f"{secs:.1f}s"
    if secs < 120:
        return f"{secs:.0f}s"
    minutes = int(secs // 60)
    if minutes < 120:
        return f"{minutes}m"
    hours = minutes // 60
    return f"{hours}h" if hours < 72 else f"{hours // 24}d"


def size(count: float) -> str:
    """Bytes in few characters."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _rate(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:,.0f}" if rate >= 9.95 or rate == 0 else f"{rate:.1f}"


def _ms(found: dict[str, Any]) -> str:
    """The half and the 99th hundredth, as upper bounds."""
    half, most = found.get("p50"), found.get("p99")
    return "-" if half is None else f"{half:g}/{most:g} ms"


def _cut(line: Text, width: int) -> Text:
    line.rstrip()
    line.truncate(width)
    return line
