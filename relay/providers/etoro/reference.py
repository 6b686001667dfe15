"""What outlives eToro's sessions: the instrument map (ids, names, exchanges), pauses and counts of refusals.

The map is plain JSON by `state` and `load_state`, so that the relay can keep it on disk; ids never change their
meaning. Nothing here sends or reads anything itself.
"""

import hashlib
from collections import deque
from typing import Any

from relay import model
from relay.providers import base
from relay.providers.base import Subscription, SymbolTable
from relay.providers.etoro import wire
from relay.providers.etoro.options import CHUNK_BYTES_MAX, REQUESTS, EtoroOptions, to_pair, to_symbol

STATE_VERSION = 1
ITEM_FRESH_NS = 24 * 3600 * 1_000_000_000
"""An instrument is asked for again a day later; it does not expire where the answer stays out."""
PAUSES_SECS = (5.0, 15.0, 60.0)
"""Waits after TooManyRequests, where the provider names none; the last one repeats."""


class Item:
    """One instrument as REST described it, and the decimals that its prices were seen with."""

    __slots__ = ("active", "at_ns", "decimals", "exchange", "id", "kind", "name", "symbol")

    def __init__(self, id: str, symbol: str) -> None:
        self.id, self.symbol = id, symbol
        self.name: str | None = None
        self.exchange: str | None = None
        """Exchange id as text."""
        self.kind: str | None = None
        """Asset class id as text."""
        self.decimals: int | None = None
        """From `pipSize`, where an answer has one."""
        self.at_ns = 0
        """When REST described it; 0: only its id and symbol are known."""

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name, None) for name in ("id", *_ITEM_TEXTS, "decimals", "at_ns")}

    @classmethod
    def from_json(cls, row: Any) -> "Item | None":
        """Read one kept row back; None where it is not one."""
        if (
            not isinstance(row, dict)
            or wire.identifier(row.get("id")) is None
            or not isinstance(row.get("symbol"), str)
        ):
            return None
        item = cls(str(row["id"]), row["symbol"])
        for name in _ITEM_TEXTS:
            value = row.get(name)
            if isinstance(value, str):
                setattr(item, name, value)
        item.decimals = wire.integer(row.get("decimals"))
        item.at_ns = wire.integer(row.get("at_ns")) or 0
        return item


_ITEM_TEXTS = ("symbol", "name", "exchange", "kind")


class EtoroShared(base.Shared):
    """State common to eToro's connections. `changed` tells the relay that `state` is worth keeping again."""

    def __init__(self, options: EtoroOptions, account: str = "main") -> None:
        super().__init__(options, account)
        self.now_ns = 0
        self.items: dict[str, Item] = {}
        self.ids: dict[str, str] = {}
        """Upper-case symbol to id."""
        self.exchanges: dict[str, str] = {}
        self.kinds: dict[str, str] = {}
        self.tables: dict[str, int] = {}
        """When the names of exchanges and of classes (`kinds`) were loaded."""
        self.decimals: dict[str, int] = {}
        """By id: the most decimals that a price came with."""
        self.missing: dict[str, int] = {}
        """Ids and upper-case symbols that REST does not know, and when it said so."""
        self.changed = False
        self._spelled: dict[str, str] = {}
        self.table = SymbolTable(self._rule, {})
        """Id (or unresolved symbol) of a message to its canonical symbol."""
        self.chunk_bytes = CHUNK_BYTES_MAX
        self.refusals = 0
        self.policy_closes = 0
        self.pauses = 0
        self.rest_until_ns = 0
        self.rest_off = ""
        """Why REST is not asked any more; empty: it is."""
        self.calls: deque[int] = deque(maxlen=REQUESTS[0])
        """When the last REST calls went out, over all sessions."""

    # -- names and ids --

    def spell(self, raw: str) -> None:
        """Learn how the configuration writes an instrument: its messages are named after that, an id first."""
        ident = self.id_of(raw)
        if ident is None:
            return
        before = self._spelled.get(ident)
        if before is None or (raw.isdecimal() and not before.isdecimal()):
            self._spelled[ident] = raw
            self.table.pop(ident, None)

    def spelled(self, ident: str) -> str:
        """Give the configuration's spelling of an id; the id itself where it names none."""
        return self._spelled.get(ident, ident)

    def id_of(self, raw: str) -> str | None:
        """Give the id behind an id or a symbol; None while it is not known."""
        if raw.isascii() and raw.isdecimal():
            return str(int(raw)) if len(raw) < 20 else raw
        return self.ids.get(raw.upper())

    def symbol_of(self, raw: str) -> str | None:
        """Give eToro's own symbol of an id or symbol, where it is known."""
        if not (raw.isascii() and raw.isdecimal()):
            return raw
        item = self.items.get(raw)
        return item.symbol if item else None

    def _rule(self, raw: str) -> tuple[str, str | None]:
        own = self.options.symbols
        spelled = self._spelled.get(raw)
        for name in (raw, spelled):
            if name is not None and name in own:
                return own[name], None
        return to_symbol(spelled or raw)

    def order_symbol(self, ident: str) -> str:
        """Name the instrument of an order: as configured, else by eToro's symbol, else by its id."""
        own = self.options.symbols
        item = self.items.get(ident)
        if ident in self._spelled or item is None or ident in own:
            return self.table[ident][0]
        return own[item.symbol] if item.symbol in own else to_symbol(item.symbol)[0]

    def wants(self, subscription: Subscription, raw_symbol: str, param: str) -> bool:
        if subscription.channel in model.ACCOUNT_CHANNELS:
            return True
        if subscription.param and param and subscription.param != param:
            return False
        raw = subscription.raw
        return raw == raw_symbol or self.id_of(raw) == raw_symbol or raw.upper() == raw_symbol.upper()

    # -- what REST told --

    def learn(self, ident: str, symbol: str) -> Item:
        """Note that an id carries a symbol."""
        item = self.items.get(ident)
        if item is None or item.symbol != symbol:
            kept = item
            item = self.items[ident] = Item(ident, symbol)
            if kept is not None:
                item.name, item.exchange, item.kind = kept.name, kept.exchange, kept.kind
            self.changed = True
        self.ids[symbol.upper()] = ident
        self.missing.pop(ident, None)
        self.missing.pop(symbol.upper(), None)
        return item

    def is_fresh(self, ident: str, now_ns: int) -> bool:
        """Tell whether an id needs no question to REST now: described, or found unknown, less than a day ago."""
        item = self.items.get(ident)
        at = max(item.at_ns if item else 0, self.missing.get(ident, 0))
        return at != 0 and now_ns - at < ITEM_FRESH_NS

    def saw_decimals(self, ident: str, text: str) -> bool:
        """Count a price's decimals; true where it has more than any before."""
        point = text.find(".")
        digits = len(text) - point - 1 if point >= 0 else 0
        if digits <= self.decimals.get(ident, -1):
            return False
        self.decimals[ident] = digits
        self.changed = True
        return True

    def instrument(self, ident: str) -> model.Instrument | None:
        """Make the message of an instrument; None before REST has described it."""
        item = self.items.get(ident)
        if item is None or not item.at_ns:
            return None
        own = self.options.precisions
        precision = own.get(ident, own.get(self.spelled(ident), own.get(item.symbol)))
        if precision is None:
            precision = item.decimals if item.decimals is not None else self.decimals.get(ident)
        halves = to_pair(item.symbol)
        kind = self.kinds.get(item.kind or "")
        return model.Instrument(
            symbol=self.table[ident][0],
            raw_symbol=ident,
            venue=self.exchanges.get(item.exchange or ""),
            base=halves[0] if halves else None,
            quote=halves[1] if halves else None,
            name=item.name or item.symbol,
            asset_class=kind.lower() if kind else None,
            price_precision=precision,
        )

    # -- pauses, ids of requests --

    def pause_secs(self, asked: Any = None) -> float:
        """Give the wait after TooManyRequests: what the provider asks for, else 5, 15, 60 seconds in a row."""
        self.pauses += 1
        wanted = wire.integer(asked)
        if wanted is not None and 0 < wanted <= 3600:
            return float(wanted)
        return PAUSES_SECS[min(self.pauses, len(PAUSES_SECS)) - 1]

    def request_id(self) -> str:
        """Give a new request id in the form of a UUID v4, made from the time handed in and a counter."""
        seed = hashlib.sha256(f"{self.account} {self.now_ns} {self.next_id()}".encode()).hexdigest()
        variant = "89ab"[int(seed[16], 16) % 4]
        return f"{seed[:8]}-{seed[8:12]}-4{seed[13:16]}-{variant}{seed[17:20]}-{seed[20:32]}"

    # -- kept on disk by the relay --

    def state(self) -> dict[str, Any]:
        """Give the instrument map as plain JSON data."""
        self.changed = False
        return {
            "version": STATE_VERSION,
            "simulated": self.options.simulate,
            "items": [item.to_json() for item in self.items.values()],
            "exchanges": dict(self.exchanges),
            "kinds": dict(self.kinds),
            "tables": dict(self.tables),
            "decimals": dict(self.decimals),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take a kept instrument map over; what cannot be read, or is of another version, is left out.

        A simulator's instruments are made up: they never get into a map that real prices are named by.
        """
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
            return
        if state.get("simulated") is not self.options.simulate:
            return
        rows = state.get("items")
        for row in rows if isinstance(rows, list) else ():
            item = Item.from_json(row)
            if item is not None:
                self.items[item.id] = item
                self.ids[item.symbol.upper()] = item.id
        self.exchanges.update(_texts(state.get("exchanges")))
        self.kinds.update(_texts(state.get("kinds")))
        self.tables.update(_counts(state.get("tables")))
        self.decimals.update(_counts(state.get("decimals")))
        self.changed = False


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, str)}


def _counts(value: Any) -> dict[str, int]:
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and type(v) is int}
