"""Topic names: one template a kind, filled in with what identifies the source; the same text is stream key and channel.

Templates know `{provider}` `{venue}` `{symbol}` `{interval}` `{account}` `{relay}`; a part in square brackets is left
out when a placeholder inside it is empty: `books.{provider}[.{venue}].{symbol}`.
"""

import re
from collections.abc import Callable, Mapping

from relay.symbols import escape

DEFAULT_TEMPLATES: Mapping[str, str] = {
    "quotes": "quotes.{symbol}",
    "trades": "trades.{symbol}",
    "bars": "bars.{interval}.{symbol}",
    "rates": "rates.{symbol}",
    "greeks": "greeks.{symbol}",
    "instruments": "instruments.{symbol}",
    "books": "books.{provider}[.{venue}].{symbol}",
    "orders": "orders.{account}",
    "positions": "positions.{account}",
    "balances": "balances.{account}",
    "account": "account.{account}",
    "status": "status.{relay}",
    "deadletter": "deadletter.{relay}",
}
PLACEHOLDERS: Mapping[str, frozenset[str]] = (
    {
        kind: frozenset({"provider", "venue", "symbol"}) | ({"interval"} if kind == "bars" else frozenset())
        for kind in ("quotes", "trades", "bars", "rates", "greeks", "instruments", "books")
    }
    | {kind: frozenset({"provider", "account"}) for kind in ("orders", "positions", "balances", "account")}
    | {kind: frozenset({"relay"}) for kind in ("status", "deadletter")}
)
"""What each kind's template may name."""
REQUIRED: Mapping[str, frozenset[str]] = {
    kind: frozenset({"symbol"}) | ({"interval"} if kind == "bars" else frozenset())
    for kind in ("quotes", "trades", "bars", "rates", "greeks", "instruments", "books")
} | {kind: frozenset({"account"}) for kind in ("orders", "positions", "balances", "account")}
"""What each kind's template must name, so that two things never share a topic by accident."""

TOPIC_CHARS_MAX = 200
_TOKEN = re.compile(r"\{([a-z]+)\}|(\[)|(\])|([A-Za-z0-9._:-]+)|(.)", re.DOTALL)

Filler = Callable[..., str]


def compile_template(kind: str, template: str) -> Filler:
    """Check one template and give its filler: `fill(provider=..., symbol=..., venue=...)` to the topic's name.

    Values are escaped into the symbol charset, except that `provider`, `account` and `relay`, which the config has
    checked, stand as they are. Raises: ValueError naming what is wrong.
    """
    allowed = PLACEHOLDERS[kind]
    groups: list[tuple[bool, list[tuple[str, str]]]] = [(False, [])]
    named: set[str] = set()
    inside = False
    for match in _TOKEN.finditer(template):
        name, opening, closing, literal, wrong = match.groups()
        if name is not None:
            if name not in allowed:
                raise ValueError(f"{{{name}}} is unknown for {kind}; known are {', '.join(sorted(allowed))}")
            named.add(name)
            groups[-1][1].append(("field", name))
        elif opening:
            if inside:
                raise ValueError("brackets cannot stand inside brackets")
            inside = True
            groups.append((True, []))
        elif closing:
            if not inside:
                raise ValueError("a closing bracket without its opening one")
            inside = False
            groups.append((False, []))
        elif literal is not None:
            groups[-1][1].append(("text", literal))
        else:
            raise ValueError(f"{wrong!r} cannot stand in a topic name; letters, digits, '.', '_', ':' and '-' can")
    if not template:
        raise ValueError("a template cannot be empty")
    if inside:
        raise ValueError("an opening bracket without its closing one")
    missing = REQUIRED.get(kind, frozenset()) - named
    if missing:
        raise ValueError(f"{', '.join('{' + m + '}' for m in sorted(missing))} must stand in the template of {kind}")

    def fill(**values: str | None) -> str:
        out: list[str] = []
        for optional, parts in groups:
            if optional and any(what == "field" and not values.get(text) for what, text in parts):
                continue
            for what, text in parts:
                if what == "text":
                    out.append(text)
                else:
                    value = values.get(text) or ""
                    out.append(escape(value) if text in ("symbol", "venue") else value)
        return "".join(out)

    return fill


class Topics:
    """All templates of one relay: prefix, relay name, one filler a kind. Cheap to ask, but cache what it gives."""

    def __init__(self, relay: str, templates: Mapping[str, str] | None = None, prefix: str = "") -> None:
        self.relay, self.prefix = relay, prefix
        self._fill = {
            kind: compile_template(kind, (templates or {}).get(kind, default))
            for kind, default in DEFAULT_TEMPLATES.items()
        }

    def name(
        self,
        kind: str,
        *,
        provider: str = "",
        venue: str | None = None,
        symbol: str | None = None,
        interval: str | None = None,
        account: str | None = None,
    ) -> str:
        """Give the topic's name. `kind` is a channel, `status` or `deadletter`."""
        return self.prefix + self._fill[kind](
            provider=provider, venue=venue, symbol=symbol, interval=interval, account=account, relay=self.relay
        )

    @property
    def status(self) -> str:
        """The topic of this relay's notices."""
        return self.name("status")

    def deadletter(self, account: str | None = None) -> str:
        """The topic of rejects: the relay's, or an account's own."""
        return f"{self.prefix}deadletter.{account}" if account else self.name("deadletter")
