"""`relay init`: writes a first relay.yaml, by flags or by asking."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from relay.providers.base import ProviderSpec

Answer = TypeVar("Answer")

STAND_IN = "stand-in-key"
"""For keys that the environment lacks, while the written file is tried."""
_LISTED = ("quotes", "trades", "rates", "greeks", "instruments")
_MAPPED = {"bars": ("1m",), "books": ("20", "25", "10")}
"""Channels with a parameter, and which one is taken where none is named and the provider has it."""


class Chosen(NamedTuple):
    """One provider as it is to be written."""

    spec: "ProviderSpec"
    raws: dict[str, str]
    """Raw symbol to canonical symbol where the rule would give another one, else empty."""
    channels: dict[str, str]
    """Channel to its parameter, empty where it has none."""


def _commas_of(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _commas(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return _commas_of(value or "")


@click.command(
    epilog="""Examples:

\b
  relay init                                                (asks)
  relay init --provider kraken --symbols BTC-USD,ETH-USD
  relay init --provider kraken --provider coinbase --symbols BTC-USD --channels quotes,trades,bars:5m
  relay init --provider binance=BTC-USDT,ETH-USDT --provider tickatlas=EUR-USD --redis redis://127.0.0.1
  relay init --provider coinapi --venue KRAKEN --symbols BTC-USD -o - | relay check -c -""",
)
@click.option("--provider", "providers", multiple=True, metavar="NAME[=SYMBOL,...]",
              help="One more provider; its own symbols may stand behind it.")  # fmt: skip
@click.option("--symbols", callback=_commas, metavar="A,B", help="Of all providers: canonical (BTC-USD) or raw.")
@click.option("--channels", callback=_commas, metavar="A,B",
              help="quotes, trades, bars:1m, books:20 ...  [default: quotes,trades]")  # fmt: skip
@click.option("--venue", default="", help="Where symbols name one and yours do not: KRAKEN makes KRAKEN_SPOT_BTC_USD.")
@click.option("--redis", default="", metavar="URL", help="Your Redis or Valkey; default: the bundled server.")
@click.option("--simulate", is_flag=True, help="Made-up prices: no key, no network.")
@click.option("-o", "--output", default="relay.yaml", show_default=True, type=click.Path(dir_okay=False),
              help="`-`: standard output.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the file where it exists.")
def command(
    providers: tuple[str, ...],
    symbols: tuple[str, ...],
    channels: tuple[str, ...],
    venue: str,
    redis: str,
    simulate: bool,
    output: str,
    force: bool,
) -> None:
    """Write a relay.yaml with comments, which `relay check` accepts.

    Without --provider it asks. Keys never stand in the file: it names the environment variables that they come from.
    """
    from relay.cli._common import fail

    if output != "-" and Path(output).exists() and not force:
        fail(f"{output} exists; name another with -o, or replace it with --force")
    if providers:
        chosen = [_by_flags(item, symbols, channels, venue) for item in providers]
    else:
        chosen, redis = _by_asking(symbols, channels, venue, redis)
    names = [one.spec.name for one in chosen]
    for name in names:
        if names.count(name) > 1:
            raise click.UsageError(f"--provider {name} stands twice; put its symbols into one.")
    text = document(chosen, redis, simulate)
    variables = [variable for one in chosen if not simulate for _, variable in keys_of(one.spec)[0]]
    _try(text, output, variables)
    if output == "-":
        click.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{output}: {error.strerror}")
    click.echo(f"{output} is written. Next:", err=True)
    given = "" if output == "relay.yaml" else f" -c {output}"
    for variable in variables:
        click.echo(f"  export {variable}=...", err=True)
    click.echo(f"  relay check{given}\n  relay run{given}", err=True)


# -- choosing ------------------------------------------------------------------------------------------------------


def _spec(name: str) -> "ProviderSpec":
    from relay.cli._common import usage_near
    from relay.providers import PROVIDERS

    if name not in PROVIDERS:
        raise click.UsageError(usage_near("provider", name, PROVIDERS))
    return PROVIDERS[name]


def _by_flags(item: str, symbols: tuple[str, ...], channels: tuple[str, ...], venue: str) -> Chosen:
    name, _, own = item.partition("=")
    spec = _spec(name.strip())
    given = _commas_of(own) or symbols
    return Chosen(spec, _raws(spec, given or spec.examples, venue), _channels(spec, channels))


def _by_asking(symbols: tuple[str, ...], channels: tuple[str, ...], venue: str, redis: str) -> tuple[list[Chosen], str]:
    from relay.providers import PROVIDERS

    click.echo("Providers:", err=True)
    for spec in PROVIDERS.values():
        key = f"needs a key: {spec.key_url}" if spec.key_url else "no key needed"
        click.echo(f"  {spec.name:10} {spec.title}: {', '.join(spec.channels)} ({key})", err=True)
    free = next((spec.name for spec in PROVIDERS.values() if not spec.key_url), "")
    chosen = []
    for spec in _ask("Which, with commas between", free, lambda text: [_spec(name) for name in _commas_of(text)]):
        raws = _ask(
            f"{spec.title}: symbols, canonical or raw",
            ",".join(symbols or spec.examples),
            partial(_asked_raws, spec, venue),
        )
        picked = _ask(
            f"{spec.title}: channels of {', '.join(spec.channels)}",
            ",".join(channels or _default_channels(spec)),
            partial(_asked_channels, spec),
        )
        chosen.append(Chosen(spec, raws, picked))
    if not redis:
        redis = click.prompt("Redis address (embedded: the bundled server)", default="embedded", err=True)
    return chosen, "" if redis == "embedded" else redis


def _ask(text: str, default: str, read: Callable[[str], Answer]) -> Answer:
    """Ask until the answer can be read."""
    while True:
        try:
            found = read(click.prompt(text, default=default or None, err=True))
        except click.UsageError as error:
            click.echo(f"  {error.message}", err=True)
        else:
            if found:
                return found


def _asked_channels(spec: "ProviderSpec", text: str) -> dict[str, str]:
    return _channels(spec, _commas_of(text))


def _asked_raws(spec: "ProviderSpec", venue: str, text: str) -> dict[str, str]:
    given = _commas_of(text)
    if spec.to_raw_at is not None and not venue and not all("_" in one or "/" in one for one in given):
        venue = click.prompt(f"{spec.title}: venue of these symbols", default="COINBASE", err=True)
    return _raws(spec, given, venue)


def _raws(spec: "ProviderSpec", given: tuple[str, ...], venue: str) -> dict[str, str]:
    """Turn symbols into the provider's raw ones; a canonical one keeps its name though the rule would not give it."""
    out: dict[str, str] = {}
    for text in given:
        raw, symbol = _raw(spec, text, venue)
        if out.setdefault(raw, symbol) != symbol:
            raise click.UsageError(f"{spec.title}: {text} is listed twice, under two names.")
    if not out:
        raise click.UsageError(f"{spec.title}: no symbols; name some with --symbols.")
    return out


def _raw(spec: "ProviderSpec", text: str, venue: str) -> tuple[str, str]:
    canonical = text.upper()
    if spec.to_raw_at is not None:
        if "_" in text or "/" in text:
            return text, ""
        if not venue:
            raise click.UsageError(
                f"{spec.title}: {text!r} names no venue; write it as EXCHANGE_SPOT_BASE_QUOTE "
                "(KRAKEN_SPOT_BTC_USD), or name one for all with --venue KRAKEN."
            )
        raw = spec.to_raw_at(canonical, venue.upper())
        if raw is None:
            raise click.UsageError(f"{spec.title}: {text!r} has no symbol id there.")
        return raw, "" if spec.rule(raw)[0] == canonical else canonical
    if "-" not in text or spec.to_raw is None:
        return text, ""  # the provider's own spelling, or the same in both
    try:
        raw = spec.to_raw(canonical)
    except ValueError as error:
        raise click.UsageError(f"{spec.title}: {error}.") from None
    return raw, "" if spec.rule(raw)[0] == canonical else canonical


def _default_channels(spec: "ProviderSpec") -> tuple[str, ...]:
    return tuple(name for name in ("quotes", "trades") if name in spec.channels) or tuple(spec.channels)[:1]


def _channels(spec: "ProviderSpec", given: tuple[str, ...]) -> dict[str, str]:
    """Read `quotes`, `bars:5m`, `books:20`; what this provider lacks is left out where something is left."""
    known = [name for name in (*_LISTED, *_MAPPED) if name in spec.channels]
    out: dict[str, str] = {}
    for item in given or _default_channels(spec):
        name, _, param = item.partition(":")
        if name not in (*_LISTED, *_MAPPED):
            raise click.UsageError(f"No channel {name!r}. {spec.title} has {', '.join(known)}.")
        if name not in known:
            continue
        if name not in _MAPPED:
            if param:
                raise click.UsageError(f"The channel {name} takes no {param!r}.")
            out[name] = ""
            continue
        allowed = spec.channels[name].allowed  # type: ignore[index]
        wanted = (param,) if param else _MAPPED[name]
        fitting = [one for one in wanted if not allowed or one in allowed]
        if not fitting and param:
            raise click.UsageError(f"{spec.title} has no {name} of {param}; it has {', '.join(allowed)}.")
        out[name] = fitting[0] if fitting else allowed[0]
    if not out:
        raise click.UsageError(f"{spec.title} has none of {', '.join(given)}; it has {', '.join(known)}.")
    return out


# -- writing -------------------------------------------------------------------------------------------------------


def keys_of(spec: "ProviderSpec") -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Name the secrets that a provider needs and those that it may have, each with its environment variable."""
    from relay.secrecy import secret_options

    named = [(name, f"{spec.name}_{name}".upper()) for name in secret_options(spec.options)] if spec.key_url else []
    needed = [one for one in named if one[0].endswith("key")] or named[:1]
    return needed, [one for one in named if one not in needed]


def document(chosen: list[Chosen], redis: str, simulate: bool) -> str:
    """Write relay.yaml's text."""
    names = ", ".join(one.spec.title for one in chosen)
    target = _scalar(redis) if redis else "embedded   # the bundled server; or redis://, rediss:// (TLS), unix://"
    lines = [
        f"# What the relay runs, written by relay init: {names}.",
        "# relay check explains it, relay run runs it. Every option: the project's README, Configuration.",
        "",
        "redis:",
        f"  url: {target}",
    ]
    templates = _templates(chosen)
    if templates:
        lines += ["", "topics:   # several sources of one symbol: a topic each"]
        lines += [f"  {kind}: {_scalar(template)}" for kind, template in templates.items()]
    lines += ["", "providers:"]
    for one in chosen:
        lines += _section(one, simulate)
    return "\n".join(lines).rstrip() + "\n"


def _section(one: Chosen, simulate: bool) -> list[str]:
    spec = one.spec
    lines = [f"  {spec.name}:" + ("" if spec.key_url else "   # needs no key")]
    if simulate:
        lines.append("    simulate: true   # made-up prices; delete this line for the real thing")
    needed, others = keys_of(spec)
    for name, variable in needed:
        off = "# " if simulate else ""
        lines.append(f"    {off}{name}: ${{{variable}:?get it at {spec.key_url}}}")
    for name, variable in others:
        lines.append(f"    # {name}: ${{{variable}}}")
    raws = "[" + ", ".join(map(_scalar, one.raws)) + "]"
    for channel, param in one.channels.items():
        lines.append(f"    {channel}: {f'{{{_scalar(param)}: {raws}}}' if param else raws}")
    for channel in ("quotes", "trades", *_MAPPED):
        if channel in spec.channels and channel not in one.channels:
            param = _channels(spec, (channel,))[channel]
            lines.append(f"    # {channel}: {f'{{{_scalar(param)}: {raws}}}' if param else raws}")
    named = {raw: symbol for raw, symbol in one.raws.items() if symbol}
    if named:
        shown = ", ".join(f"{_scalar(raw)}: {_scalar(symbol)}" for raw, symbol in named.items())
        lines.append(f"    symbols: {{{shown}}}   # raw to canonical")
    return [*lines, ""]


def _templates(chosen: list[Chosen]) -> dict[str, str]:
    """Find topics that several sources would share, and give those kinds a name with the source in it."""
    from relay.topics import DEFAULT_TEMPLATES

    sources: dict[tuple[str, str, str], set[tuple[str, str]]] = {}
    for one in chosen:
        for raw, named in one.raws.items():
            symbol, venue = one.spec.rule(raw)
            source = (one.spec.name, (venue or "") if one.spec.source == "venue" else "")
            for channel, param in one.channels.items():
                sources.setdefault((channel, named or symbol, param), set()).add(source)
    out: dict[str, str] = {}
    for (channel, _, _), meeting in sources.items():
        default = DEFAULT_TEMPLATES[channel]
        if len(meeting) > 1 and "{provider}" not in default:
            venue = "[.{venue}]" if any(name for _, name in meeting) else ""
            out[channel] = default.replace(channel, f"{channel}.{{provider}}{venue}", 1)
    return out


def _scalar(text: str) -> str:
    """Write a text as YAML, plain where it can stand so inside brackets."""
    import json
    import re

    plain = re.fullmatch(r"[A-Za-z0-9$][A-Za-z0-9_./$+*-]*", text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _try(text: str, output: str, variables: list[str]) -> None:
    """Read the text as `relay check` will; what it refuses is said, and nothing is written."""
    import os

    from relay.cli._common import fail
    from relay.config import load
    from relay.errors import ConfigError
    from relay.providers import PROVIDERS

    environ = dict.fromkeys(variables, STAND_IN) | dict(os.environ)

    def unread(path: str) -> str:
        raise FileNotFoundError(path)

    try:
        load(text, output, environ=environ, read_file=unread, providers=PROVIDERS)
    except ConfigError as error:
        fail("\n".join(f"{problem.path}: {problem.text}" for problem in error.problems), error.exit_code)
