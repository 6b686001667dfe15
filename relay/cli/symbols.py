"""`relay symbols`: what a provider offers, canonical and raw, by its own list over REST."""

import os
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from relay.providers.base import Listed, ProviderSpec, Reply, Request

SAID_CHARS_MAX = 200
_GLOB = "*?["


@click.command(
    epilog="""Examples:

\b
  relay symbols kraken
  relay symbols binance 'BTC-*'
  relay symbols coinbase sol --json | jq -r '.[].raw'
  relay symbols coinapi 'KRAKEN_SPOT_*'      (with COINAPI_API_KEY in the environment)""",
)
@click.argument("provider")
@click.argument("pattern", default="")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects: raw, symbol, name, active.")
@click.option("-c", "--config", type=click.Path(dir_okay=False), help="Take address and key from PROVIDER's section.")
@click.option("--rest-url", metavar="URL", help="Another REST base than the provider's own.")
def command(provider: str, pattern: str, as_json: bool, config: str | None, rest_url: str | None) -> None:
    """List the symbols of PROVIDER whose canonical or raw name fits PATTERN.

    PATTERN is a glob in quotes (`'BTC-*'`), or a part of the name. Letter case does not matter. The first column is the
    canonical symbol, as in topic names; the second is the raw one, as relay.yaml wants it. Exit code 1 where nothing
    fits or the list cannot be had.
    """
    import json

    from relay.cli._common import fail

    spec, options = _target(provider, config, rest_url)
    listing = spec.listing
    if listing is None:
        fail(f"{spec.title} has no list of symbols that can be asked for here; see {spec.key_url or 'its own pages'}")
    prefix = _prefix(pattern)
    try:
        request = listing.narrowed(options, prefix) if listing.narrowed and prefix else listing.request(options)
    except ValueError as error:
        fail(f"{spec.title}: {error}")
    reply = _call(request)
    if reply.status != 200:
        fail(f"{spec.title} gave no list of symbols: {_problem(reply)}")
    try:
        listed = listing.read(options, reply.body)
    except ValueError as error:
        fail(f"the list of symbols of {spec.title} cannot be read: {error}")
    found = sorted((one for one in listed if _fits(one, pattern)), key=lambda one: (one.symbol, one.raw))
    if as_json:
        click.echo(json.dumps([one._asdict() for one in found], indent=2, ensure_ascii=False))
    else:
        for line in _lines(found):
            click.echo(line)
        click.echo(f"{len(found)} of {len(listed)} symbols of {spec.title}", err=True)
    if not found:
        raise SystemExit(1)


def _target(provider: str, config: str | None, rest_url: str | None) -> "tuple[ProviderSpec, Any]":
    """Find the provider and the options to ask it with: from a file, or its defaults and keys of the environment."""
    import msgspec

    from relay.cli._common import fail, read_config, usage_near
    from relay.providers import PROVIDERS
    from relay.secrecy import secret_options

    if config is not None:
        sections = read_config(config).providers
        if provider not in sections:
            raise click.UsageError(f"{config}: {usage_near('provider', provider, sections)}")
        spec, options = sections[provider].spec, sections[provider].options
    else:
        if provider not in PROVIDERS:
            raise click.UsageError(usage_near("provider", provider, PROVIDERS))
        spec = PROVIDERS[provider]
        names = {name: f"{spec.name}_{name}".upper() for name in secret_options(spec.options)}
        make: Any = spec.options
        options = make(**{name: os.environ[var] for name, var in names.items() if os.environ.get(var)})
    if rest_url is not None:
        if not rest_url.startswith(("http://", "https://")):
            raise click.UsageError("--rest-url must begin with https:// or http://.")
        if "rest_url" not in spec.options.__struct_fields__:
            fail(f"{spec.title} is asked at its own address only")
        options = msgspec.structs.replace(options, rest_url=rest_url)
    return spec, options


def _call(request: "Request") -> "Reply":
    import anyio

    from relay.feed.rest import Rest

    async def call() -> "Reply":
        rest = Rest()
        try:
            return await rest.call(request, lambda: None)
        finally:
            await rest.close()

    return anyio.run(call)


def _problem(reply: "Reply") -> str:
    if reply.status == 0:
        return f"{reply.error or 'no answer'} (offline?)"
    said = " ".join(reply.body[:1000].decode("utf-8", "replace").split())[:SAID_CHARS_MAX]
    return f"HTTP {reply.status}{f': {said}' if said.isprintable() and said else ''}"


def _prefix(pattern: str) -> str:
    """What comes before a pattern's first wildcard."""
    return pattern[: next((at for at, char in enumerate(pattern) if char in _GLOB), len(pattern))]


def _fits(one: "Listed", pattern: str) -> bool:
    from fnmatch import fnmatchcase

    wanted = pattern.upper()
    names = (one.symbol.upper(), one.raw.upper())
    if any(char in _GLOB for char in wanted):
        return any(fnmatchcase(name, wanted) for name in names)
    return any(wanted in name for name in names)


def _lines(found: "list[Listed]") -> list[str]:
    symbols = max((len(one.symbol) for one in found), default=0)
    raws = max((len(one.raw) for one in found), default=0)
    return [
        f"{one.symbol:{symbols}}  {one.raw:{raws}}  {one.name}{'' if one.active else '  not trading'}".rstrip()
        for one in found
    ]
