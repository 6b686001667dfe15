"""Checks of the provider sections: each alone, then against one another.

It knows no provider: everything comes from the table of specs that is handed in.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from relay.config.addresses import is_loopback
from relay.config.document import Node, joined
from relay.config.planned import topics_of_provider
from relay.config.structs import NAME_PATTERN, Config, ProviderConfig, Settings
from relay.config.values import Reader, Section
from relay.model import ACCOUNT_CHANNELS
from relay.providers.base import Planned, ProviderSpec, Subscription, matches
from relay.secrecy import secret_options
from relay.symbols import is_symbol

SIMULATED_KEY = "simulated"
"""Stands for a secret that a simulated provider needs and the file does not give."""

RAW_SYMBOL_CHARS_MAX = 256
_LISTED = ("quotes", "trades", "rates", "greeks", "instruments")
_MAPPED = ("bars", "books")
_NAME = re.compile(NAME_PATTERN)
_INTERVAL = re.compile(r"[1-9][0-9]{0,3}(s|m|h|d|w|M|mo|y)")
_DEPTH = re.compile(r"[1-9][0-9]{0,4}|full")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def read_provider(
    name: str, key: Node, node: Node, specs: Mapping[str, ProviderSpec], reader: Reader
) -> ProviderConfig | None:
    """Read and check one provider section; None, and its problems, where it cannot be used."""
    path = joined("providers", name)
    usable = True
    if not _NAME.fullmatch(name):
        usable = False
        reader.refuse(key, path, "a provider's name is 1 to 32 characters of [a-z0-9_-]; `type:` says what it is")
    if node.kind == "bad":
        return None
    if node.kind != "map" or not node.pairs:
        text = "must be a mapping of options" if node.kind == "list" or node.text else "is empty"
        reader.refuse(
            key if text == "is empty" else node, path, f"{text}; say what it subscribes to, as in quotes: [...]"
        )
        return None
    spec = _spec(name, key, node, specs, reader, path)
    if spec is None:
        return None
    section = reader.section(spec.options, node, path)
    _check_key(section, spec, reader, key)
    _check_channels(section, spec, reader)
    _check_options(section, spec, reader)
    options = reader.build(section)
    if options is None or not usable or reader.wrong(path):
        return None
    return _planned(name, key, options, spec, reader, path)


def _spec(
    name: str, key: Node, node: Node, specs: Mapping[str, ProviderSpec], reader: Reader, path: str
) -> ProviderSpec | None:
    given = next((value for k, value in node.pairs if k.kind == "scalar" and k.text == "type"), None)
    if given is not None:
        kind = reader.text(given, f"{path}.type", "the name of a provider")
        if not isinstance(kind, str):
            return None
        if kind not in specs:
            near = reader.problems.near("" if given.expands else kind, specs)
            reader.refuse(given, f"{path}.type", f"{given.shown()} is no provider; {near}")
        return specs.get(kind)
    if name not in specs:
        near = reader.problems.near(name, specs)
        reader.refuse(key, path, f"is no provider; {near} (a name of your own needs `type:`)")
    return specs.get(name)


# -- keys --------------------------------------------------------------------------------------------------------


def _check_key(section: Section, spec: ProviderSpec, reader: Reader, key: Node) -> None:
    """Refuse a live provider without its key; a simulated one takes any.

    Only secrets that are called a key: tokens have more than one way to come, which the provider's own options check.
    """
    keys = [name for name in secret_options(spec.options) if name.endswith("key")] if spec.key_url else []
    given = [joined(section.path, name + end) for name in keys for end in ("", "_file")]
    if not keys or any(map(reader.given, given)):
        return
    if section.values.get("simulate"):
        section.values |= dict.fromkeys(keys, SIMULATED_KEY)
    elif not reader.wrong(joined(section.path, "simulate")):
        option, variable = keys[0], f"{spec.name}_{keys[0]}".upper()
        text = f"needs a key from {spec.key_url}: `{option}: ${{{variable}}}` or `{option}_file`, or `simulate: true`"
        reader.refuse(key, section.path, text)


# -- channels and symbols ----------------------------------------------------------------------------------------


def _check_channels(section: Section, spec: ProviderSpec, reader: Reader) -> None:
    for channel in (*_LISTED, *_MAPPED):
        path = f"{section.path}.{channel}"
        if not reader.given(path):
            continue
        if channel not in spec.channels:
            text = f"{spec.title} has no {channel}; it has {', '.join(spec.channels)}"
            reader.refuse(reader.at(f"{path}:"), path, text)
            continue
        value = section.values.get(channel)
        if channel in _LISTED:
            _check_symbols(path, value or (), spec, reader)
            continue
        depths: dict[str, str] = {}
        for param, raws in (value or {}).items():
            where = joined(path, param)
            if channel == "bars" and not _INTERVAL.fullmatch(param):
                text = "is no interval; write a count and s, m, h, d, w or M (month), as in 1m or 4h"
                reader.refuse(reader.at(f"{where}:"), where, text)
            if channel == "books" and not _DEPTH.fullmatch(param):
                text = "is no depth; write a number of levels, as in 20, or `full`"
                reader.refuse(reader.at(f"{where}:"), where, text)
            _check_symbols(where, raws, spec, reader)
            for raw in raws if channel == "books" else ():
                if depths.setdefault(raw, param) != param:
                    text = f"{raw!r} has depth {depths[raw]} already; a symbol has one depth"
                    reader.refuse(reader.at_item(where, raw), where, text)


def _check_symbols(path: str, raws: tuple[str, ...], spec: ProviderSpec, reader: Reader) -> None:
    for raw in raws:
        node = reader.at_item(path, raw)
        shown = node.shown() if node else ""
        if len(raw) > RAW_SYMBOL_CHARS_MAX:
            reader.refuse(node, path, f"a symbol has at most {RAW_SYMBOL_CHARS_MAX} characters")
        elif _CONTROL.search(raw) or raw != raw.strip():
            reader.refuse(node, path, f"{shown} has a blank at an end or a control character in it")
        elif "*" in raw and not spec.patterns:
            reader.refuse(node, path, f"{shown}: {spec.title} takes no patterns; list the symbols")
        elif "*" in raw[:-1]:
            reader.refuse(node, path, f"{shown}: a '*' can stand at the end only")


def _check_options(section: Section, spec: ProviderSpec, reader: Reader) -> None:
    values, path = section.values, section.path
    for raw, symbol in values.get("symbols", {}).items():
        where = joined(f"{path}.symbols", raw)
        node = reader.at(where)
        if not is_symbol(symbol):
            also = (
                f"; did you mean {symbol.upper()}?" if is_symbol(symbol.upper()) and not (node and node.expands) else ""
            )
            text = f"{node.shown() if node else ''} is no symbol: 1 to 64 characters of [A-Z0-9._-]{also}"
            reader.refuse(node, where, text)
        elif raw.endswith("*"):
            reader.refuse(reader.at(f"{where}:"), where, "a pattern cannot stand here; name one raw symbol")
    for channel, secs in values.get("stale_secs", {}).items():
        where = joined(f"{path}.stale_secs", channel)
        if channel not in spec.channels:
            near = reader.problems.near(channel, spec.channels)
            reader.refuse(reader.at(f"{where}:"), where, f"is no channel of {spec.title}; {near}")
        elif secs < 0:
            reader.refuse(reader.at(where), where, "must be at least 0 (0: never stale)")
    for option in ("interval_ms", "when_full"):
        for channel, value in values.get(option, {}).items():
            where = joined(f"{path}.{option}", channel)
            if channel != "quotes" and value not in (0, "block"):
                text = "only quotes may be thinned: of anything else each message counts"
                reader.refuse(reader.at(f"{where}:"), where, text)
            elif isinstance(value, int) and value < 0:
                reader.refuse(reader.at(where), where, "must be at least 0 (0: every quote)")
    if values.get("url"):
        _check_url(values["url"], f"{path}.url", reader)
    account = values.get("account")
    if isinstance(account, str) and account and not _NAME.fullmatch(account):
        text = "an account's label is 1 to 32 characters of [a-z0-9_-]"
        reader.refuse(reader.at(f"{path}.account"), f"{path}.account", text)


def _check_url(url: str, path: str, reader: Reader) -> None:
    node = reader.at(path)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        reader.refuse(node, path, "is no address; write wss://host/path")
        return
    if parts.scheme not in ("ws", "wss") or not host:
        reader.refuse(node, path, "must be the address of a WebSocket: wss://host/path (or ws:// on this machine)")
    elif parts.username or parts.password:
        reader.refuse(node, path, "holds a user or password; give secrets by their own options")
    elif parts.scheme == "ws" and not is_loopback(host):
        reader.problems.warn(node, path, "is not encrypted, keys included; take wss://")


# -- a section as a whole ----------------------------------------------------------------------------------------


def _planned(
    name: str, key: Node, options: Any, spec: ProviderSpec, reader: Reader, path: str
) -> ProviderConfig | None:
    try:
        subscriptions = list(spec.subscribed(options))
        connections: list[Planned] = list(spec.plan(options, subscriptions)) if subscriptions else []
    except ValueError as error:
        reader.refuse(key, path, str(error))
        return None
    if not subscriptions:
        reader.refuse(key, path, f"subscribes to nothing; give it one of {', '.join(spec.channels)}")
        return None
    out = ProviderConfig(name, spec, options, subscriptions, connections, key.line)
    if not options.simulate:
        for where, node in reader.literals:
            if where.startswith(f"{path}."):
                variable = f"{spec.name}_{where.rpartition('.')[2]}".upper()
                reader.problems.warn(
                    node, where, f"stands in the file as it is; put it in the environment: ${{{variable}}}"
                )
    for raw in options.symbols:
        if not any(matches(sub.raw, raw) for sub in subscriptions):
            where = joined(f"{path}.symbols", raw)
            reader.problems.warn(reader.at(f"{where}:"), where, "is not subscribed to")
    _check_meeting(out, reader, path)
    return out


def place_of(provider: ProviderConfig, sub: Subscription, reader: Reader) -> tuple[Node | None, str]:
    """Give node and path of a subscription; those of the section where a provider made it up from other options."""
    base = joined("providers", provider.name)
    path = joined(f"{base}.{sub.channel}", sub.param) if sub.param else f"{base}.{sub.channel}"
    node = reader.at_item(path, sub.raw) or reader.at(f"{path}:")
    return (node, path) if node else (reader.at(f"{base}:"), base)


def _check_meeting(provider: ProviderConfig, reader: Reader, path: str) -> None:
    """Refuse two raw symbols of one provider and venue that get one canonical symbol."""
    rule, own = provider.spec.rule, provider.options.symbols
    met: dict[tuple[str, str | None], str] = {}
    told: set[str] = set()
    named = [(sub.raw, sub) for sub in provider.subscriptions if sub.raw and not sub.raw.endswith("*")]
    for raw, sub in [*named, *((raw, None) for raw in own)]:
        symbol, venue = rule(raw)
        symbol = own.get(raw, symbol)
        first = met.setdefault((symbol, venue), raw)
        if first == raw or raw in told:
            continue
        told.add(raw)
        mapped = f"{path}.symbols"
        if reader.given(joined(mapped, raw)):
            node, where = reader.at(joined(mapped, raw)), joined(mapped, raw)
        elif sub is not None:
            node, where = place_of(provider, sub, reader)
        else:
            node, where = None, mapped
        at = f" of {venue}" if venue else ""
        text = f"{raw!r} and {first!r}{at} would both be {symbol}; give one another name under `symbols:`"
        reader.refuse(node, where, text)


# -- sections against one another --------------------------------------------------------------------------------


def check_together(config: Config, reader: Reader) -> None:
    """Check what only all providers together can break: connections a key, sources on one topic."""
    _check_connections(config, reader)
    if not config.merge:
        _check_sources(config, reader)


def _check_connections(config: Config, reader: Reader) -> None:
    used: dict[tuple[str, ...], int] = {}
    for name, provider in config.providers.items():
        spec = provider.spec
        limit = spec.limits.connections_max
        if limit is None:
            continue
        secrets = [str(getattr(provider.options, option) or "") for option in secret_options(spec.options)]
        key = (spec.name, str(provider.options.simulate), *secrets)
        used[key] = used.get(key, 0) + len(provider.connections)
        if used[key] > limit:
            path = joined("providers", name)
            text = f"needs {used[key]} connections with this key, {spec.title} allows {limit}; subscribe to less"
            if used[key] > len(provider.connections):
                text = (
                    f"and the sections before it need {used[key]} connections with one key, {spec.title} allows {limit}"
                )
            reader.refuse(reader.at(f"{path}:"), path, text)


def _check_sources(config: Config, reader: Reader) -> None:
    owners: dict[str, tuple[tuple[str, str], str]] = {}
    meeting: dict[tuple[str, tuple[str, str], tuple[str, str]], list[tuple[str, Node | None, str]]] = {}
    for provider in config.providers.values():
        for topic in topics_of_provider(config, provider):
            sub = topic.subscription
            if sub is None or topic.pattern:
                continue
            first, kind = owners.setdefault(topic.name, (topic.source, topic.kind))
            if kind != topic.kind:
                node, path = place_of(provider, sub, reader)
                text = f"topic {topic.name} would hold {kind} and {topic.kind}; let their templates differ"
                reader.refuse(node, path, text)
            elif first != topic.source:
                node, path = place_of(provider, sub, reader)
                meeting.setdefault((topic.kind, first, topic.source), []).append((topic.name, node, path))
    for (kind, one, other), where in meeting.items():
        name, node, path = where[0]
        more = f" (and {len(where) - 1} more)" if len(where) > 1 else ""
        differ = "{provider}" if one[0] != other[0] else "{venue}"
        if kind in ACCOUNT_CHANNELS:
            differ = "{provider}"
        default = config.topics.get(kind) or _default(kind)
        template = default.replace(kind, f"{kind}.{differ}", 1) if kind in default else f"{differ}.{default}"
        if kind in ACCOUNT_CHANNELS:
            text = (
                f"topic {name}{more} would carry two accounts, of {one[0]} and {other[0]}, both labelled {one[1]!r}; "
                f"give one of them another label (`account: {other[0]}`), or separate them by "
                f"`topics: {{{kind}: '{template}'}}`"
            )
        else:
            text = (
                f"topic {name}{more} would carry two sources, {_source(one)} and {_source(other)}; separate them by "
                f"`topics: {{{kind}: '{template}'}}`, or say `merge: true`"
            )
        reader.refuse(node, path, text)


def _default(kind: str) -> str:
    from relay.topics import DEFAULT_TEMPLATES

    return DEFAULT_TEMPLATES[kind]


def _source(source: tuple[str, str]) -> str:
    return " ".join(filter(None, source))


def as_config(settings: Settings, providers: dict[str, ProviderConfig]) -> Config:
    """Put the settings and the providers together."""
    return Config(**msgspec.structs.asdict(settings), providers=providers)
