"""What one session asks of REST and makes of the answers: names, instruments, the last price where it is quiet."""

from collections.abc import Sequence
from decimal import Context, Decimal
from typing import Any

from relay import numbers
from relay.model import Quote, Status
from relay.providers.base import Output, Reply
from relay.providers.etoro import wire
from relay.providers.etoro.control import Control
from relay.providers.etoro.merge import Standing
from relay.providers.etoro.options import EtoroOptions
from relay.providers.etoro.reference import ITEM_FRESH_NS, EtoroShared
from relay.providers.etoro.rest import BATCH, Answered, Kind, Rest, closing_price
from relay.providers.etoro.topics import Desk
from relay.providers.etoro.wire import Object

CLOSING_FRESH_NS = 3600 * 1_000_000_000
"""Official closing prices change once a day; asked for at most this often."""

TABLES_WAIT_NS = 10_000_000_000
"""An instrument is published without the names of its exchange and class when they take longer than this."""

TABLES: tuple[Kind, ...] = ("exchanges", "kinds")

_EXACT = Context(prec=250)


class Lookup:
    """The REST side of one session; `standing` is the session's own, by instrument id."""

    def __init__(
        self, options: EtoroOptions, shared: EtoroShared, desk: Desk, control: Control, standing: dict[str, Standing]
    ) -> None:
        self.options, self.shared = options, shared
        self.rest = Rest(shared)
        self._desk, self._control, self._standing = desk, control, standing
        self._published: set[str] = set()
        self._closing_ns = 0

    def forget(self) -> None:
        """Forget what was published of instruments that nothing asks for any more."""
        self._published = {raw for raw in self._published if self._desk.takes("instruments", raw)}

    # -- reference data --

    def reference(self, now_ns: int) -> list[Output]:
        """Ask for what is not known or a day old; publish what is known and was not published in this session."""
        shared, desk, rest = self.shared, self._desk, self.rest
        unknown = [name for name in desk.names_without_id() if not shared.is_fresh(name.upper(), now_ns)]
        if unknown and not rest.busy("universe"):
            rest.ask_names(unknown)
        out: list[Output] = []
        idents = desk.idents("instruments")
        rest.ask("items", [ident for ident in idents if not shared.is_fresh(ident, now_ns)])
        for kind in TABLES if idents else ():
            if now_ns - shared.tables.get(kind, 0) > ITEM_FRESH_NS:
                rest.ask(kind)
        complete = len(shared.tables) == len(TABLES) or shared.rest_off
        for ident in idents:
            item = shared.items.get(ident)
            if item is None or ident in self._published:
                continue
            # the names of exchange and class belong into the message: wait for them, but not for ever
            if complete or now_ns - item.at_ns > TABLES_WAIT_NS:
                self.publish(ident, out)
        return out

    def publish(self, raw: str, out: list[Output]) -> None:
        if self._desk.takes("instruments", raw):
            message = self.shared.instrument(raw)
            if message is not None:
                self._published.add(raw)
                out.append(message)

    def replied(self, reply: Reply, now_ns: int) -> list[Output]:
        """Take an answer of REST. Raises: HandshakeRefused where it says that the keys are bad."""
        out: list[Output] = []
        proven = self._control.authenticated and self._control.inband
        answer = self.rest.replied(reply, now_ns, proven, out)
        if answer is not None:
            match answer.job.kind:
                case "search" | "universe":
                    out += self._named(answer, now_ns)
                case "items":
                    self._described(answer, now_ns)
                case "exchanges" | "kinds":
                    self._tables(answer, now_ns)
                case "rates":
                    self._rates(answer, now_ns, out)
                case "closing":
                    self._closings(answer, out)
            out += self.reference(now_ns)
        return out

    def _named(self, answer: Answered, now_ns: int) -> list[Output]:
        """Give names their ids and subscribe to them; say which names eToro does not know."""
        shared, desk = self.shared, self._desk
        asked = answer.job.keys or tuple(desk.names_without_id())
        wanted = {name.upper() for name in asked}
        for row in answer.rows:
            ident = wire.identifier(row.get("instrumentid"))
            symbol = row.get("internalsymbolfull", row.get("symbolfull"))
            if ident and isinstance(symbol, str) and symbol.upper() in wanted:
                item = shared.learn(ident, symbol)
                if answer.job.kind == "universe":
                    _describe(item, row, now_ns)
        desk.refresh()
        self._control.send_unsent(now_ns)
        out: list[Output] = []
        for name in asked:
            if shared.id_of(name) is not None:
                out += self._one_instrument_twice(name)
                continue
            shared.missing[name.upper()] = now_ns
            out += [
                Status(
                    event="refused",
                    channel=sub.channel,
                    raw_symbol=sub.raw,
                    code="unknown_symbol",
                    text=f"eToro has no instrument {name}",
                )
                for sub in desk.of_name(name)
            ]
        return out

    def _one_instrument_twice(self, name: str) -> list[Output]:
        """Say so where a name turns out to be an instrument that is configured under another spelling too."""
        ident = self.shared.id_of(name) or ""
        spelled = self.shared.spelled(ident)
        if spelled.upper() == name.upper():
            return []
        text = f"{name} and {spelled} are one instrument; its messages go under {self.shared.table[ident][0]}"
        return [Status(event="notice", raw_symbol=ident, code="one_instrument", text=text)]

    def _described(self, answer: Answered, now_ns: int) -> None:
        found = set()
        for row in answer.rows:
            ident = wire.identifier(row.get("instrumentid")) or ""
            symbol = row.get("symbolfull", row.get("symbol"))
            if ident not in answer.job.keys or not isinstance(symbol, str) or not symbol:
                continue
            found.add(ident)
            before = self.shared.items.get(ident)
            item = self.shared.learn(ident, symbol)
            kept = before.to_json() if before else None
            _describe(item, row, now_ns)
            if kept is None or {**item.to_json(), "at_ns": 0} != {**kept, "at_ns": 0}:
                self._published.discard(ident)  # it says something new
        for ident in answer.job.keys:
            if ident not in found:
                self.shared.missing[ident] = now_ns

    def _tables(self, answer: Answered, now_ns: int) -> None:
        ids, texts, table = (
            ("exchangeid", "exchangedescription", self.shared.exchanges)
            if answer.job.kind == "exchanges"
            else ("instrumenttypeid", "instrumenttypedescription", self.shared.kinds)
        )
        for row in answer.rows:
            ident = wire.integer(row.get(ids))
            text = row.get(texts)
            if ident is not None and isinstance(text, str) and text and table.get(str(ident)) != text[:64]:
                table[str(ident)] = text[:64]
                self._published.clear()  # what was published may lack it
        self.shared.tables[answer.job.kind] = now_ns
        self.shared.changed = True

    # -- the last price where the stream is quiet --

    def find_quiet(self, now_ns: int) -> None:
        """Ask for the rates of instruments without a price for longer than `fallback_secs`, the longest asked first."""
        limit = int(self.options.fallback_secs * 1e9)
        if not limit or self.rest.busy("rates") or self.shared.rest_off:
            return
        due = []
        for raw in self._desk.idents("quotes"):
            standing = self._standing.get(raw)
            if standing is None:
                standing = self._standing[raw] = Standing(now_ns)
            since = max(standing.heard_ns, standing.polled_ns)
            if now_ns - since >= limit:
                due.append((since, raw))
        if due:
            due.sort()
            batch = [raw for _, raw in due[:BATCH]]
            for raw in batch:
                self._standing[raw].polled_ns = now_ns
            self.rest.ask("rates", batch)

    def _rates(self, answer: Answered, now_ns: int, out: list[Output]) -> None:
        """Publish the mids of instruments that are quiet still; where none is told, the closing price serves."""
        found = set()
        for row in answer.rows:
            raw = wire.identifier(row.get("instrumentid"))
            if raw is None:
                continue
            mid = _mid(row)
            if mid is not None:
                found.add(raw)
                self._fall_back(raw, mid, wire.time_ns(row.get("date")), answer.job.keys, out)
        if not found.issuperset(answer.job.keys) and now_ns - self._closing_ns > CLOSING_FRESH_NS:
            self._closing_ns = now_ns
            self.rest.ask("closing")

    def _closings(self, answer: Answered, out: list[Output]) -> None:
        quiet = [raw for raw, standing in self._standing.items() if standing.polled_ns and not standing.rest_shown]
        for row in answer.rows:
            raw = wire.identifier(row.get("instrumentid"))
            price = closing_price(row) if raw in quiet else None
            if raw is not None and price is not None:
                self._fall_back(raw, price[0], price[1], quiet, out)

    def _fall_back(self, raw: str, mid: str, time: int | None, asked: Sequence[str], out: list[Output]) -> None:
        """Publish a price from REST, unless the stream has spoken since, knows a newer one, or it was said before."""
        standing = self._standing.get(raw)
        if standing is None or raw not in asked or not self._desk.takes("quotes", raw):
            return
        if standing.heard_ns > standing.polled_ns or standing.rest_shown == (mid, time):
            return
        if time is not None and standing.watermark is not None and time < standing.watermark:
            return
        standing.rest_shown = (mid, time)
        out.append(Quote(symbol=self.shared.table[raw][0], raw_symbol=raw, ts_event=time, mid=mid, origin="rest"))


def _describe(item: Any, row: Object, now_ns: int) -> None:
    """Fill an item from a row of metadata."""
    name = row.get("instrumentdisplayname", row.get("displayname"))
    if isinstance(name, str) and name:
        item.name = name[:200]
    for attribute, key in (("exchange", "exchangeid"), ("kind", "instrumenttypeid")):
        number = wire.integer(row.get(key))
        if number is not None:
            setattr(item, attribute, str(number))
    pip = wire.amount(row.get("pipsize"))
    if pip and not numbers.is_zero(pip) and "." in pip:
        item.decimals = len(pip.rstrip("0").partition(".")[2])
    item.at_ns = now_ns


def _mid(row: Object) -> str | None:
    """(bid + ask) / 2 exactly, else the last execution; None where neither is above 0."""
    prices: list[str | None] = []
    for name in ("bid", "ask", "lastexecution"):
        try:
            prices.append(wire.price(row.get(name)))
        except ValueError:
            prices.append(None)
    bid, ask, last = prices
    if bid is None or ask is None:
        return last
    middle = _EXACT.divide(_EXACT.add(Decimal(bid), Decimal(ask)), Decimal(2))
    return f"{middle:f}"
