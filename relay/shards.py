"""Which of N processes writes which topic, and what each of them subscribes to. Pure.

Topics are dealt out by rendezvous hashing of their names: each has one writer, every process finds the same one by
itself, and one process more takes only its own share. What cannot be parted stays together: everything that feeds one
topic, all of an account, a pattern and what it takes, a book and the quotes made of it, and the whole of a provider
that allows too few connections.
"""

import posixpath
import re
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b

import msgspec

from relay.config import Config, Dealt, PlannedTopic, ProviderConfig, Shard, topics_of
from relay.config.planned import topics_of_provider
from relay.config.structs import NAME_PATTERN
from relay.errors import ConfigError, Problem
from relay.model import ACCOUNT_CHANNELS
from relay.providers.base import FROM_BOOK, Subscription, matches

SHARDS_MAX = 64
"""More processes than any machine that this runs on has cores for; a shard costs some 60 MB."""
CONNECTIONS_EACH = 2
"""Connections that a shard needs of those that a key has: its own, and a second one to change over to."""
_TEXT = re.compile(r"([1-9][0-9]?)/([1-9][0-9]?)")
_PLACE = re.compile(r"(\{[a-z]+\})")


def parse(text: str) -> tuple[int, int]:
    """Read `2/4`. Raises: ValueError."""
    found = _TEXT.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no shard; write its number and how many there are, as in 2/4")
    number, count = int(found[1]), int(found[2])
    if count > SHARDS_MAX:
        raise ValueError(f"{count} shards are too many; at most {SHARDS_MAX}")
    if number > count:
        raise ValueError(f"there is no shard {number} of {count}; they are counted from 1")
    return number, count


def name_of(relay: str, number: int) -> str:
    """Give the name under which a shard owns its topics."""
    return f"{relay}-{number}"


def is_sibling(owner: str, relay: str) -> bool:
    """Tell whether a relay's name is that of a shard of `relay`, or of `relay` before it was parted."""
    return owner == relay or re.fullmatch(rf"{re.escape(relay)}-[1-9][0-9]?", owner) is not None


def home(key: str, count: int) -> int:
    """Choose one of the shards 1 to `count` for a key: the one whose hash together with the key is highest."""
    return max(
        range(1, count + 1), key=lambda number: blake2b(f"{number}\0{key}".encode(), digest_size=8).digest()
    )  # fmt: skip


# -- dealing -----------------------------------------------------------------------------------------------------


class _Groups:
    """Things that must stay together: joined by whatever they share."""

    def __init__(self) -> None:
        self._above: dict[object, object] = {}

    def top(self, thing: object) -> object:
        above = self._above.setdefault(thing, thing)
        while above != thing:
            thing, above = above, self._above.setdefault(above, above)
        return thing

    def join(self, one: object, other: object) -> None:
        self._above[self.top(one)] = self.top(other)


def deal(config: Config, count: int) -> Dealt:
    """Deal a whole configuration out over so many shards."""
    together = {
        name: why for name, provider in config.providers.items() if (why := _why_together(config, provider, count))
    }
    while True:
        dealt = _deal(config, count, together)
        crowded = {name: why for name in config.providers if (why := _crowded(config, name, dealt))}
        if not crowded:
            return dealt
        together |= crowded  # at most once a provider


def _keyed(config: Config, provider: ProviderConfig) -> int:
    """Count the sections of a provider's kind: they may share a key and so its connections."""
    return sum(other.spec is provider.spec for other in config.providers.values())


def _why_together(config: Config, provider: ProviderConfig, count: int) -> str:
    if count == 1:
        return ""
    spec, most = provider.spec, provider.spec.limits.connections_max
    if why := spec.together(provider.options):
        return why
    if most is not None and most < count * CONNECTIONS_EACH * _keyed(config, provider):
        return f"{spec.title} allows {most} connection{'s' if most > 1 else ''} with one key"
    return ""


def _crowded(config: Config, name: str, dealt: Dealt) -> str:
    """Tell why a provider's subscriptions, as dealt, take more connections than a shard's part of the limit."""
    provider = config.providers[name]
    most = provider.spec.limits.connections_max
    if most is None or name in dealt.together or dealt.count == 1:
        return ""
    each = most // (dealt.count * _keyed(config, provider))
    if any(len(provider.spec.plan(provider.options, part[name])) > each for part in dealt.parts if name in part):
        return f"{provider.spec.title} allows {most} connections with one key, too few for a part on each shard"
    return ""


def _deal(config: Config, count: int, together: Mapping[str, str]) -> Dealt:
    groups = _Groups()
    planned: list[PlannedTopic] = []
    for provider in config.providers.values():
        own = list(topics_of_provider(config, provider))
        base = len(planned)
        planned += own
        for number, topic in enumerate(own, base):
            groups.join(number, f"topic {topic.name}")
            sub = topic.subscription
            if provider.name in together:
                groups.join(number, f"provider {provider.name}")
            if sub is None or sub.channel in ACCOUNT_CHANNELS:
                groups.join(number, f"account of {provider.name}")
            elif sub.channel == "books" or sub.param == FROM_BOOK:
                groups.join(number, f"book {provider.name} {sub.raw}")
        _join_patterns(groups, own, base)
    if config.merge:
        _join_merged(groups, planned)
    keys: dict[object, tuple[int, str]] = {}
    for number, topic in enumerate(planned):
        if topic.provider in together:
            key = (0, f"provider {topic.provider}")
        else:
            derived = topic.subscription is not None and topic.subscription.param == FROM_BOOK
            key = (2 if derived else 1, topic.name)
        top = groups.top(number)
        keys[top] = min(keys.get(top, key), key)
    shards = {top: home(key, count) for top, (_, key) in keys.items()}
    homes: dict[str, int] = {}
    patterns: dict[str, int] = {}
    parts: list[dict[str, list[Subscription]]] = [{} for _ in range(count)]
    for number, topic in enumerate(planned):
        shard = shards[groups.top(number)]
        (patterns if topic.pattern else homes)[topic.name] = shard
        if topic.subscription is not None:
            parts[shard - 1].setdefault(topic.provider, []).append(topic.subscription)
    whole = tuple({name: tuple(subs) for name, subs in part.items()} for part in parts)
    return Dealt(count, homes, patterns, whole, dict(together))


def _join_patterns(groups: _Groups, own: list[PlannedTopic], base: int) -> None:
    """A pattern goes with all that it takes of its own provider: else two would write one topic."""
    for number, topic in enumerate(own, base):
        sub = topic.subscription
        if sub is None or not sub.raw.endswith("*"):
            continue
        for other_number, other in enumerate(own, base):
            taken = other.subscription
            if taken is None or taken.channel != sub.channel or (sub.channel == "bars" and taken.param != sub.param):
                continue
            if matches(sub.raw, taken.raw.removesuffix("*")) or (
                taken.raw.endswith("*") and matches(taken.raw, sub.raw)
            ):
                groups.join(number, other_number)


def _join_merged(groups: _Groups, planned: list[PlannedTopic]) -> None:
    """Where sources may share topics, a pattern goes with every topic that it could write."""
    for number, topic in enumerate(planned):
        if topic.pattern:
            could = _pattern(topic.name)
            for other_number, other in enumerate(planned):
                if other.kind == topic.kind and could.fullmatch(other.name):
                    groups.join(number, other_number)


def _pattern(template: str) -> re.Pattern[str]:
    """Make what matches all names that a template (`trades.{symbol}`) can give, and the template itself."""
    return re.compile("".join(".+" if part.startswith("{") else re.escape(part) for part in _PLACE.split(template)))


def home_of(dealt: Dealt, topic: str) -> int | None:
    """Give the shard of a topic; None: it is none that the configuration names or a pattern could make."""
    found = dealt.homes.get(topic)
    if found is None:
        for template, shard in dealt.patterns.items():
            if _pattern(template).fullmatch(topic):
                return shard
    return found


def moved(old: Dealt, new: Dealt) -> list[str]:
    """Name the topics, and templates of topics, that another shard writes in the second dealing."""
    return [
        name
        for before, after in ((old.homes, new.homes), (old.patterns, new.patterns))
        for name, shard in before.items()
        if after.get(name, shard) != shard
    ]


# -- one shard's configuration -----------------------------------------------------------------------------------


def sharded(config: Config, number: int, count: int, file: str, dealt: Dealt | None = None) -> Config:
    """Give one shard's part of a configuration, with names, folders and a port of its own. `dealt`: where it is known.

    Raises: ConfigError naming why it cannot be parted; `file` stands in it.
    """
    problems = _problems(config, count, file)
    if problems:
        raise ConfigError(problems)
    dealt = dealt or deal(config, count)
    part = dealt.parts[number - 1]
    providers = {}
    for name, provider in config.providers.items():
        if name in part:
            subscriptions = list(part[name])
            providers[name] = replace(
                provider,
                subscriptions=subscriptions,
                connections=list(provider.spec.plan(provider.options, subscriptions)),
                sharers=1 if name in dealt.together else count,
            )
    own = name_of(config.name, number)
    change = msgspec.structs.replace
    bytes_max = config.redis.streams_bytes_max
    spool, journal, http = config.spool, config.journal, config.http
    return change(
        config,
        name=own,
        state_dir=posixpath.join(config.state_dir, own),
        redis=change(config.redis, streams_bytes_max=max(1, bytes_max // count) if bytes_max else 0),
        # side by side, each in a folder of its relay's name: what another layout has left is found there
        spool=change(spool, dir=spool.dir or posixpath.join(config.state_dir, "spool")),
        journal=change(journal, dir=journal.dir and posixpath.join(journal.dir, own)),
        http=change(http, port=http.port + number - 1 if http.port else 0),
        providers=providers,
        shard=Shard(number, config.name, config.state_dir, config.all_simulated, config.simulated_types, dealt),
    )


def _problems(config: Config, count: int, file: str) -> list[Problem]:
    out = []
    longest = name_of(config.name, count)
    if not re.fullmatch(NAME_PATTERN, longest):
        out.append(
            Problem(file, 0, 0, "name", f"is too long for {count} shards: {longest!r} must fit into 32 characters")
        )
    for kind in ("status", "deadletter"):
        if "{relay}" not in config.topics.get(kind, "{relay}"):
            text = "must name {relay}: each shard has one of its own"
            out.append(Problem(file, 0, 0, f"topics.{kind}", text))
    if config.http.port and config.http.port + count - 1 > 65535:
        out.append(Problem(file, 0, 0, "http.port", f"leaves no {count} ports, one for each shard"))
    return out


def whole_of(config: Config) -> dict[str, str]:
    """Name the providers that one shard alone holds, with the folder of their state: it follows them to another one."""
    shard = config.shard
    return {} if shard is None else dict.fromkeys(shard.dealt.together, shard.state_dir)


def siblings_of(shard: Shard) -> frozenset[str]:
    """Name the other shards of the same layout."""
    numbers = range(1, shard.dealt.count + 1)
    return frozenset(name_of(shard.name, number) for number in numbers if number != shard.number)


def mark_of(shard: Shard) -> str:
    """Give a text that changes when other topics are dealt to a shard."""
    dealt = shard.dealt
    own = sorted(name for homes in (dealt.homes, dealt.patterns) for name, at in homes.items() if at == shard.number)
    return blake2b("\n".join(own).encode(), digest_size=8).hexdigest()


class Layout:
    """How topics are dealt, as a shard's sink sees it: by the names of relays."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    def home(self, topic: str) -> str | None:
        """Give the name of the shard that writes a topic; None: no shard of this configuration does."""
        number = home_of(self._shard.dealt, topic)
        return None if number is None else name_of(self._shard.name, number)

    def is_sibling(self, owner: str) -> bool:
        """Tell whether a relay's name is that of a shard of the same relay, in this layout or a former one."""
        return is_sibling(owner, self._shard.name)


def topics_by_shard(config: Config, dealt: Dealt) -> list[list[PlannedTopic]]:
    """List the planned topics of each shard, its own status and dead letters not included."""
    out: list[list[PlannedTopic]] = [[] for _ in range(dealt.count)]
    for topic in topics_of(config):
        shard = (dealt.patterns if topic.pattern else dealt.homes).get(topic.name)
        if shard is not None:
            out[shard - 1].append(topic)
    return out
