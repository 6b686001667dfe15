"""Which topics a configuration makes, and under which prefix: what `relay check` shows and the bridge builds."""

import posixpath
from collections.abc import Iterator
from typing import NamedTuple

from relay.config.structs import EMBEDDED, Config, ProviderConfig
from relay.providers.base import Subscription
from relay.topics import Topics

SIMULATED_PREFIX = "sim."
"""Made-up prices never stand under a live topic's name."""

# Stand in for what only arriving messages know; plain symbol characters, so that no escaping touches them.
_ANY_SYMBOL, _ANY_VENUE = "X-ANY-SYMBOL-X", "X-ANY-VENUE-X"


class PlannedTopic(NamedTuple):
    """One topic that would be made; of a pattern, the template of its topics (`quotes.{symbol}`)."""

    name: str
    kind: str
    """A channel, `status` or `deadletter`."""
    provider: str = ""
    """Our name for it; empty for the relay's own topics."""
    subscription: Subscription | None = None
    source: tuple[str, str] = ("", "")
    """What numbers and orders its messages: provider and, where venues do, the venue."""
    symbol: str = ""

    @property
    def pattern(self) -> bool:
        """Whether the name holds a placeholder."""
        return "{" in self.name


def prefix_of(config: Config, provider: ProviderConfig | None = None) -> str:
    """Give the prefix of a provider's topics, or of the relay's own.

    Simulated ones go under `sim.`, except in a relay that has nothing else and writes to the embedded server, where
    they have a data folder of their own.
    """
    prefix = config.redis.prefix
    if config.all_simulated:
        return prefix if config.redis.url == EMBEDDED else SIMULATED_PREFIX + prefix
    return SIMULATED_PREFIX + prefix if provider is not None and provider.options.simulate else prefix


def names_of(config: Config, provider: ProviderConfig | None = None) -> Topics:
    """Give the topic names of a provider, or of the relay's own topics."""
    return Topics(config.name, config.topics, prefix_of(config, provider))


def data_dir_of(config: Config) -> str:
    """Give the folder of the embedded server's data; made-up prices have one of their own."""
    if config.redis.data_dir:
        return posixpath.join(config.redis.data_dir, "sim") if config.all_simulated else config.redis.data_dir
    state_dir = config.shard.state_dir if config.shard is not None else config.state_dir
    return posixpath.join(state_dir, "sim" if config.all_simulated else "redis")


def topics_of(config: Config) -> list[PlannedTopic]:
    """List every topic that would be made, in configured order, the relay's own last."""
    out = [topic for provider in config.providers.values() for topic in topics_of_provider(config, provider)]
    own = names_of(config)
    out.append(PlannedTopic(own.status, "status"))
    out.append(PlannedTopic(own.deadletter(), "deadletter"))
    return out


def topics_of_provider(config: Config, provider: ProviderConfig) -> Iterator[PlannedTopic]:
    """List the topics of one provider, one a subscription; accounts bring their dead-letter topic along."""
    names, spec, options = names_of(config, provider), provider.spec, provider.options
    account = False
    for sub in provider.subscriptions:
        if sub.channel in spec.account_channels:
            account = True
            name = names.name(sub.channel, provider=provider.name, account=provider.account)
            yield PlannedTopic(name, sub.channel, provider.name, sub, (provider.name, provider.account))
            continue
        if sub.raw.endswith("*"):
            symbol, venue = _ANY_SYMBOL, _ANY_VENUE if spec.source == "venue" else None
        else:
            symbol, venue = spec.rule(sub.raw)
            symbol = options.symbols.get(sub.raw, symbol)
            venue = venue if spec.source == "venue" else None
        name = names.name(sub.channel, provider=provider.name, venue=venue, symbol=symbol, interval=sub.param or None)
        name = name.replace(_ANY_SYMBOL, "{symbol}").replace(_ANY_VENUE, "{venue}")
        yield PlannedTopic(name, sub.channel, provider.name, sub, (provider.name, venue or ""), symbol)
    if account:
        yield PlannedTopic(names.deadletter(provider.account), "deadletter", provider.name)
