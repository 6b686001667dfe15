"""How a running relay stands, as one plain document: what /status.json gives to `relay status` and `relay top`.

Times are ns since 1970, ages are left to the reader. No secret, and no values of account topics.
"""

import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from relay import __version__
from relay.config import shown_url
from relay.feed import Feed
from relay.histogram import Histogram
from relay.model import ACCOUNT_CHANNELS
from relay.provider_state import ProviderState, Running
from relay.vitals import Rates

TOPICS_DEFAULT, TOPICS_MAX = 100, 1000
BLOCKED_MAX = 20
SORTS = ("name", "rate", "age", "count")


class Overview:
    """Makes status documents of one relay. Keeps nothing but what rates need."""

    def __init__(self, bridge: Running) -> None:
        self._bridge = bridge
        self._rates = Rates()

    def document(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Give the document. `query`: filter (text in the name), provider, sort, limit, offset of the topics.

        Raises: ValueError for a value that is none.
        """
        limit = _number(query, "limit", TOPICS_DEFAULT, TOPICS_MAX)
        offset = _number(query, "offset", 0, 1 << 31)
        sort = query.get("sort", "name")
        if sort not in SORTS:
            raise ValueError(f"sort must be one of {', '.join(SORTS)}")
        bridge = self._bridge
        topics = bridge.outbox.topics
        counts = {name: topic.seq for name, topic in topics.items()}
        for name, state in bridge.providers.items():
            counts[f"\0{name}"] = state.source.counts.published
            counts[f"\1{name}"] = sum(feed.stats.frames for feed in state.feeds)
        rate = self._rates.of(counts)
        wanted = query.get("filter", "").lower()
        provider = query.get("provider", "")
        found = [
            topic
            for name, topic in topics.items()
            if topic.seq and wanted in name.lower() and (not provider or topic.provider == provider)
        ]
        keys: dict[str, Any] = {
            "name": lambda topic: topic.name,
            "rate": lambda topic: (-(rate(topic.name) or 0.0), topic.name),
            "age": lambda topic: (-_ms_of(topic), topic.name),
            "count": lambda topic: (-topic.seq, topic.name),
        }
        found.sort(key=keys[sort])
        stale = {
            route.topic.name
            for state in bridge.providers.values()
            for route in state.source.routes.values()
            if route is not None and route.stale
        }
        ready, why = bridge.is_ready()
        vitals = bridge.vitals
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "relay": bridge.config.name,
            "version": __version__,
            "run": bridge.run,
            "now": bridge.clock(),
            "ready": ready,
            "why": why,
            "stopping": bridge.stopping,
            "cpu_secs": usage.ru_utime + usage.ru_stime,
            "memory_bytes": _memory(usage.ru_maxrss),
            "loop_lag_ms": _quantiles(vitals.lag) | {"max": vitals.lag_max * 1000},
            "receipt_to_stored_ms": _quantiles(vitals.to_stored),
            "reloads": dict(vitals.reloads),
            "loaded": vitals.loaded_ns,
            "standby": bridge.standby.document() if bridge.standby is not None else None,
            "redis": _redis(bridge),
            "outbox": {
                "bytes": bridge.outbox.size,
                "bytes_max": bridge.outbox.bytes_max,
                "entries": bridge.outbox.entries(),
                "full": bridge.outbox.full,
                "blocked": [
                    {"topic": topic.name, "why": topic.blocked}
                    for topic, _ in zip(bridge.outbox.blocked(), range(BLOCKED_MAX), strict=False)
                ],
            },
            "providers": [
                _provider(state, rate(f"\0{name}"), rate(f"\1{name}")) for name, state in bridge.providers.items()
            ],
            "topics": [
                _topic(topic, rate(topic.name), topic.name in stale, vitals.newest)
                for topic in found[offset : offset + limit]
            ],
            "topics_matching": len(found),
            "topics_total": sum(1 for topic in topics.values() if topic.seq),
        }


def _redis(bridge: Running) -> dict[str, Any]:
    stats = bridge.sink.stats
    return {
        "url": shown_url(bridge.redis_url),
        "bundled": bridge.server is not None,
        "state": bridge.sink.state,
        "away": bridge.sink.away,
        "calls": stats.calls,
        "call_ms": _quantiles(stats.durations) | {"max": stats.call_secs_max * 1000},
        "entries": stats.entries,
        "bytes": stats.bytes,
        "connects": stats.connects,
        "errors": dict(stats.errors),
    }


def _provider(state: ProviderState, rate: float | None, frames: float | None) -> dict[str, Any]:
    counts = state.source.counts
    stale, last_ns = state.source.standing()
    out = {
        "name": state.config.name,
        "type": state.config.spec.name,
        "title": state.config.spec.title,
        "simulated": state.config.options.simulate,
        "connections": [_connection(state, feed) for feed in state.feeds],
        "rate": rate,
        "frames_rate": frames,
        "last": last_ns or None,
        "published": counts.published,
        "gaps": counts.gaps,
        "missing": counts.missing,
        "rejects": counts.rejects,
        "repeats": counts.repeats,
        "topics": len(state.source.topics),
        "stale": stale,
    }
    quota = getattr(state.shared, "quota", None)
    return out | {"quota": quota} if isinstance(quota, int) else out


def _connection(state: ProviderState, feed: Feed) -> dict[str, Any]:
    """One connection: `up`, `waiting` (until `next`), `connecting` or `given up`; since when, and why it last ended."""
    note = state.notes.get(feed.label)
    if feed.label in state.stopped:
        how = "given up"
    elif feed.live:
        how = "up"
    elif note is not None and note.next_ns is not None:
        how = "waiting"
    else:
        how = "connecting"
    out: dict[str, Any] = {
        "label": feed.label,
        "state": how,
        "since": note.since_ns if note else None,
        "connects": feed.stats.connects,
        "opened": feed.stats.opened,
        "frames": feed.stats.frames,
        "bytes": feed.stats.bytes,
        "ended": dict(feed.stats.ended),
    }
    if note is not None and note.why:
        out["why"] = note.why
    if how == "waiting" and note is not None:
        out["next"] = note.next_ns
    return out


def _topic(topic: Any, rate: float | None, stale: bool, newest: Mapping[str, bytes | None]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "name": topic.name,
        "kind": topic.kind,
        "provider": topic.provider,
        "count": topic.seq,
        "rate": rate,
        "waiting": len(topic.ids),
        "stale": stale,
    }
    if topic.blocked:
        out["blocked"] = topic.blocked
    if topic.kind in ACCOUNT_CHANNELS or topic.kind == "deadletter":
        return out
    body = newest.get(topic.name)
    if body is not None:
        out["last"] = msgspec.Raw(body)
    return out


def _ms_of(topic: Any) -> int:
    """Time of the newest entry that Redis has or is to get."""
    last = topic.ids[-1] if topic.ids else topic.last
    head = last.partition("-")[0] if last else ""
    return int(head) if head else 0


def _quantiles(histogram: Histogram) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        found = histogram.quantile(share)
        out[name] = None if found is None else found * 1000
    return out


def _memory(peak: int) -> int:
    """Resident memory now; where the platform does not say, its peak."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return peak if sys.platform == "darwin" else peak * 1024


def _number(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError(f"{name} must be a whole number")
    return min(int(text), most)


SUMMARY_SECS = 60.0


class Summary:
    """One log line a minute: what came, what went wrong, what waits."""

    def __init__(self, bridge: Running) -> None:
        self._bridge = bridge
        self._at = time.monotonic()
        self._before: dict[str, int] = {}

    def tick(self) -> None:
        """Write the line when a minute is over; call it about once a second."""
        now = time.monotonic()
        secs = now - self._at
        if secs < SUMMARY_SECS:
            return
        bridge = self._bridge
        states = list(bridge.providers.values())
        counts = [state.source.counts for state in states]
        totals = {
            "messages": sum(c.published for c in counts),
            "stored": bridge.sink.stats.entries,
            "gaps": sum(c.gaps for c in counts),
            "rejects": sum(c.rejects for c in counts),
            "reconnects": sum(max(0, feed.stats.connects - 1) for state in states for feed in state.feeds),
        }
        # a provider that a reload took away takes its counts along
        since = {name: max(0, total - self._before.get(name, 0)) for name, total in totals.items()}
        self._at, self._before = now, totals
        live, feeds = bridge.feeds_live()
        fields: dict[str, Any] = {
            "per_second": round(since["messages"] / secs, 1),
            **since,
            "connections": f"{live}/{feeds}",
            "stale": sum(state.source.standing()[0] for state in states),
            "topics": len(bridge.outbox.topics),
            "waiting": bridge.outbox.entries(),
            "redis": bridge.sink.state,
        }
        quiet = ("gaps", "rejects", "reconnects", "stale", "waiting")
        bridge.event("info", "in the last minute", **{k: v for k, v in fields.items() if v or k not in quiet})
