"""SIGHUP: from the configuration that runs to another one, without touching what both have in common.

`compare` (pure) says what has to happen, or why it cannot; `reload` does it. What cannot be done at run time refuses
the new configuration whole: what runs is always one file, never a mixture of two.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from relay import lifecycle
from relay.config import Config, ProviderConfig, data_dir_of, prefix_of
from relay.config.structs import Settings
from relay.errors import ConfigError, Problem
from relay.model import Status
from relay.providers.base import Subscription
from relay.shards import moved

if TYPE_CHECKING:
    from relay.bridge import Bridge
    from relay.provider_state import ProviderState

AT_RUN_TIME = frozenset({"quotes", "trades", "bars", "books", "rates", "greeks", "instruments"})
"""Options that only say what is subscribed to: a change of any other begins the provider's sessions anew."""
OTHERS = frozenset({"log"})
"""Sections that whoever calls us sees to."""


@dataclass
class Changed:
    """What changes in a provider whose sessions live on. Subscriptions by connection label."""

    config: ProviderConfig
    added: dict[str, list[Subscription]] = field(default_factory=dict)
    removed: dict[str, list[Subscription]] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    """Connections that are new."""
    closed: list[str] = field(default_factory=list)


@dataclass
class Changes:
    """What leads from one configuration to another."""

    added: list[ProviderConfig] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    restarted: list[ProviderConfig] = field(default_factory=list)
    changed: list[Changed] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.restarted or self.changed)


def compare(old: Config, new: Config, file: str) -> Changes:
    """Find out what has to happen. Raises: ConfigError naming all that cannot change while the relay runs."""
    problems = [
        Problem(file, 0, 0, name, "has changed, which needs a restart of the relay")
        for name in Settings.__struct_fields__
        if name not in OTHERS and getattr(old, name) != getattr(new, name)
    ]
    if not problems and (prefix_of(old), data_dir_of(old)) != (prefix_of(new), data_dir_of(new)):
        text = "a relay of simulated providers alone keeps its data apart; adding or taking a live one needs a restart"
        problems.append(Problem(file, 0, 0, "providers", text))
    if old.shard is not None and new.shard is not None and (names := moved(old.shard.dealt, new.shard.dealt)):
        text = f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} would move to another shard, "
        problems.append(Problem(file, 0, 0, "providers", text + "which needs a restart of all shards"))
    simulated = old.simulated_types
    for name, provider in new.providers.items():
        if provider.options.simulate and provider.spec.name not in simulated:
            text = "the simulator does not play this provider yet, which needs a restart of the relay"
            problems.append(Problem(file, provider.line, 1, f"providers.{name}.simulate", text))
    if problems:
        raise ConfigError(problems)
    out = Changes(removed=[name for name in old.providers if name not in new.providers])
    for name, provider in new.providers.items():
        before = old.providers.get(name)
        if before is None:
            out.added.append(provider)
        elif before.spec is not provider.spec or _settled(before.options) != _settled(provider.options):
            out.restarted.append(provider)
        elif before.options != provider.options:
            out.changed.append(_changed(before, provider))
    return out


def _settled(options: Any) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__struct_fields__ if name not in AT_RUN_TIME}


def _changed(before: ProviderConfig, after: ProviderConfig) -> Changed:
    out = Changed(after)
    old = {planned.label: planned.subscriptions for planned in before.connections}
    new = {planned.label: planned.subscriptions for planned in after.connections}
    out.closed = [label for label in old if label not in new]
    out.opened = [label for label in new if label not in old]
    for label in (label for label in new if label in old):
        had, has = set(old[label]), set(new[label])
        added = [sub for sub in new[label] if sub not in had]
        removed = [sub for sub in old[label] if sub not in has]
        if added:
            out.added[label] = added
        if removed:
            out.removed[label] = removed
    return out


async def reload(bridge: "Bridge", new: Config, file: str) -> None:
    """Run another configuration from now on. One at a time; callers wait for the one before.

    Raises: ConfigError where it cannot be done at run time; then nothing has changed.
    """
    async with bridge.reloading:
        changes = compare(bridge.config, new, file)
        again = _given_up(bridge, changes)
        bridge.vitals.loaded_ns = bridge.clock()
        if not changes and not again:
            bridge.vitals.reloads["unchanged"] += 1
            bridge.event("info", "configuration read again: nothing has changed", file=file)
            bridge.config = new
            return
        gone = [*changes.removed, *(provider.name for provider in changes.restarted)]
        await _stop(feed for name in gone for feed in bridge.providers[name].feeds)
        with _recorded(bridge, anew=bool(gone or changes.added)):
            for name in gone:
                bridge.intake.leave(bridge.providers.pop(name).source)
            bridge.config = new
            for provider in (*changes.restarted, *changes.added):
                for feed in bridge.add_provider(provider).feeds:
                    bridge.start_feed(feed)
        for changed in changes.changed:
            await _change(bridge, changed)
        with _recorded(bridge, anew=bool(again)):
            for state, label in again:
                _begin(bridge, state, label)
        bridge.providers = {name: bridge.providers[name] for name in new.providers}
        for name, provider in new.providers.items():
            bridge.providers[name].config = provider
        bridge.vitals.reloads["applied"] += 1
        _tell(bridge, changes, again)


def refused(bridge: "Bridge", error: ConfigError) -> None:
    """Say that a configuration cannot be used and that the old one stays."""
    bridge.vitals.reloads["refused"] += 1
    for problem in error.problems:
        bridge.event("error", "configuration refused, the old one stays", why=str(problem))
    count = len(error.problems)
    text = f"configuration refused, the old one stays: {error.problems[0]}" + (f" (+{count - 1})" if count > 1 else "")
    bridge.publish(Status(event="notice", code="reload_refused", text=text[:1000]))


def _given_up(bridge: "Bridge", changes: Changes) -> list[tuple["ProviderState", str]]:
    """Connections that were refused for good: a reload tries them again, the cause may be mended."""
    anew = {*changes.removed, *(provider.name for provider in changes.restarted)}
    closed = {(c.config.name, label) for c in changes.changed for label in c.closed}
    return [
        (state, label)
        for name, state in bridge.providers.items()
        for label in state.stopped
        if name not in anew and (name, label) not in closed
    ]


async def _stop(feeds: Iterable[Any]) -> None:
    async with anyio.create_task_group() as stopping:
        for feed in feeds:
            stopping.start_soon(feed.stop)


async def _change(bridge: "Bridge", changed: Changed) -> None:
    """Let a provider's live sessions subscribe to what is new and no longer to what is gone."""
    config = changed.config
    state = bridge.providers[config.name]
    feeds = {feed.label: feed for feed in state.feeds}
    await _stop(feeds[label] for label in changed.closed)
    state.feeds = [feed for feed in state.feeds if feed.label not in changed.closed]
    for label in changed.closed:
        for held in (state.plans, state.notes, state.live, state.stopped):
            held.pop(label, None)
    state.config, state.options = config, bridge.options_of(config)
    state.shared.options = state.options
    state.plans = {planned.label: planned for planned in config.connections}
    for label, subscriptions in changed.removed.items():
        feeds[label].unsubscribe(subscriptions)
    if bridge.recorder is not None:
        bridge.recorder.subscriptions(config.name, config.subscriptions, state.plans, bridge.clock())
    plans = {label: planned.subscriptions for label, planned in state.plans.items()}
    lifecycle.resubscribed(bridge.intake, state.source, config.subscriptions, plans)
    for label, subscriptions in changed.added.items():
        feeds[label].subscribe(subscriptions)
    with _recorded(bridge, anew=bool(changed.opened or changed.closed)):
        for label in changed.opened:
            bridge.start_feed(bridge.add_feed(state, label))
    bridge.sink.notify()


@contextmanager
def _recorded(bridge: "Bridge", *, anew: bool) -> Iterator[None]:
    """Tell the recording of providers and connections that come or go inside, where nothing else may happen."""
    recorder = bridge.recorder if anew else None
    if recorder is not None:
        recorder.reloading()
    yield
    if recorder is not None:
        recorder.reloaded(bridge.config, bridge.providers, bridge.clock())


def _begin(bridge: "Bridge", state: "ProviderState", label: str) -> None:
    state.stopped.pop(label, None)
    state.notes.pop(label, None)
    state.feeds = [feed for feed in state.feeds if feed.label != label]
    bridge.start_feed(bridge.add_feed(state, label))


def _tell(bridge: "Bridge", changes: Changes, again: list[tuple["ProviderState", str]]) -> None:
    fields: dict[str, Any] = {
        "added": ",".join(provider.name for provider in changes.added),
        "removed": ",".join(changes.removed),
        "restarted": ",".join(provider.name for provider in changes.restarted),
        "subscribed": sum(len(subs) for c in changes.changed for subs in c.added.values()),
        "unsubscribed": sum(len(subs) for c in changes.changed for subs in c.removed.values()),
        "connections_opened": sum(len(c.opened) for c in changes.changed),
        "connections_closed": sum(len(c.closed) for c in changes.changed),
        "tried_again": len(again),
    }
    fields = {name: value for name, value in fields.items() if value}
    bridge.event("info", "configuration reloaded", **fields)
    words = " ".join(f"{name}={value}" for name, value in fields.items())
    bridge.publish(Status(event="notice", code="reloaded", text=f"configuration reloaded: {words}"[:1000]))
