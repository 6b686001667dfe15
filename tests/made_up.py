"""Two made-up providers and what it takes to read a configuration of them, for the tests of `relay.config`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pytest
from msgspec import Meta, Struct

from relay.config import Config, load
from relay.errors import ConfigError
from relay.providers.base import (
    ChannelSpec,
    Limits,
    Options,
    Planned,
    ProviderSpec,
    Subscription,
    subscriptions,
)
from relay.secrecy import Secret
from relay.symbols import escape


class AlphaOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Link(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str
    weight: Annotated[int, Meta(gt=0, lt=10)] = 1


class BetaOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    api_key: Secret = ""
    account: str = "main"
    orders: bool = False
    level: Annotated[int, Meta(ge=1, le=5)] = 1
    ratio: Annotated[float, Meta(gt=0)] = 1.0
    note: Annotated[str, Meta(min_length=2, max_length=4)] | None = None
    link: Link | None = None
    codes: dict[str, int] = {}

    def __post_init__(self) -> None:
        if self.level == 4:
            raise ValueError("level: 4 was never built")
        if self.level == 5:
            raise ValueError("level 5 needs a contract")


def _venue_rule(raw: str) -> tuple[str, str | None]:
    venue, _, symbol = raw.rpartition(":")
    return escape(symbol.replace("/", "-")), venue or None


def _one_each(options: Any, subs: Sequence[Subscription]) -> list[Planned]:
    return [Planned(str(i + 1), (sub,)) for i, sub in enumerate(subs)]


def _with_orders(options: Any) -> list[Subscription]:
    return subscriptions(options, ("orders",) if options.orders else ())


def _no_session(*args: Any) -> Any:
    raise AssertionError("a config is checked without a session")


ALPHA = ProviderSpec(
    name="alpha",
    title="Alpha",
    options=AlphaOptions,
    session=_no_session,
    channels={"quotes": ChannelSpec(), "trades": ChannelSpec(), "bars": ChannelSpec(params="interval")},
    rule=lambda raw: (escape(raw.upper()), None),
)
BETA = ProviderSpec(
    name="beta",
    title="Beta",
    options=BetaOptions,
    session=_no_session,
    channels={
        "quotes": ChannelSpec(),
        "books": ChannelSpec(params="depth"),
        "orders": ChannelSpec(account=True),
    },
    rule=_venue_rule,
    source="venue",
    subscribed=_with_orders,
    plan=_one_each,
    limits=Limits(connections_max=3),
    patterns=True,
    key_url="https://beta.example/keys",
)
SPECS = {"alpha": ALPHA, "beta": BETA}
FILES = {"key": "  from-a-file\n", "empty": "\n", "lines": "a\nb"}


def read_file(name: str) -> str:
    if name == "latin1":
        return b"\xe9".decode()
    if name not in FILES:
        raise FileNotFoundError(2, "No such file or directory")
    return FILES[name]


def read(text: str | bytes, specs: Mapping[str, ProviderSpec] = SPECS, **environ: str) -> Config:
    return load(text, "relay.yaml", environ=environ, read_file=read_file, providers=specs)


def errors(text: str | bytes, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, **environ)
    assert caught.value.exit_code == 78
    return [str(problem).removeprefix("relay.yaml:") for problem in caught.value.problems]


def with_alpha(text: str) -> str:
    return text + "providers: {alpha: {quotes: [A]}}\n"


def alpha(text: str) -> str:
    return "providers:\n  alpha:\n" + "".join(f"    {line}\n" for line in text.splitlines())


def beta(text: str) -> str:
    return "providers:\n  beta:\n    api_key: ${K}\n" + "".join(f"    {line}\n" for line in text.splitlines())
