"""What several shards say of themselves, as one page: status documents and metrics put together. Pure.

Counts and sizes are added, of times and states the worst stands for all. A shard that does not answer is named.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from relay import __version__

TOPICS_DEFAULT, TOPICS_MAX = 100, 1000
BLOCKED_MAX = 20
_STATES = ("flowing", "standby", "stopped", "starting", "degraded", "holding", "lost")
"""Of a sink, the better ones first."""


class Standing(NamedTuple):
    """One shard as its supervisor sees it, with its own status document; None: it does not answer."""

    number: int
    name: str
    state: str
    """`up`, `starting`, `waiting` (to be started again) or `ended`."""
    since_ns: int
    starts: int
    pid: int | None
    why: str
    document: dict[str, Any] | None


def metrics(pages: Mapping[str, str]) -> list[Metric]:
    """Put the metrics of shards together, each sample labelled `shard`. `pages`: by label, in Prometheus' text form."""
    families: dict[str, Metric] = {}
    for label, text in pages.items():
        for family in text_string_to_metric_families(text):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            whole.samples += [sample._replace(labels={**sample.labels, "shard": label}) for sample in family.samples]
    return list(families.values())


def ready(standings: Sequence[Standing]) -> tuple[bool, str]:
    """Tell whether all shards are ready, and if not, which is not and why; `standby` where all of them stand by."""
    for one in standings:
        if one.document is None:
            why = "does not answer" if one.state == "up" else f"is not up: {one.why or one.state}"
            return False, f"shard {one.name} {why}"
        if not one.document["ready"]:
            return False, f"shard {one.name}: {one.document['why']}"
    words = {one.document["why"] for one in standings if one.document is not None}
    return True, words.pop() if len(words) == 1 else "ready"


def status(
    relay: str,
    standings: Sequence[Standing],
    query: Mapping[str, str],
    own: Mapping[str, Any],
) -> dict[str, Any]:
    """Give one status document for all shards; `query` as each of them was asked, but for limit and offset.

    `own`: run, now, stopping, redis url, whether it is bundled, cpu_secs and memory_bytes of the supervisor.
    """
    documents = [one.document for one in standings if one.document is not None]
    offset, limit = page_of(query)
    topics = _sorted([topic for doc in documents for topic in doc["topics"]], query.get("sort", "name"))
    is_ready, why = ready(standings)

    def total(key: str) -> Any:
        return sum(doc[key] for doc in documents)

    outboxes = [doc["outbox"] for doc in documents]
    return {
        "relay": relay,
        "version": __version__,
        "run": own["run"],
        "now": own["now"],
        "ready": is_ready,
        "why": why,
        "stopping": own["stopping"],
        "shards": [_shard(one) for one in standings],
        "cpu_secs": own["cpu_secs"] + total("cpu_secs"),
        "memory_bytes": own["memory_bytes"] + total("memory_bytes"),
        "loop_lag_ms": _worst([doc["loop_lag_ms"] for doc in documents]),
        "receipt_to_stored_ms": _worst([doc["receipt_to_stored_ms"] for doc in documents]),
        "reloads": _added([doc["reloads"] for doc in documents]),
        "loaded": max((doc["loaded"] for doc in documents), default=own["run"] * 1_000_000),
        "redis": _redis([doc["redis"] for doc in documents], own),
        "outbox": {
            "bytes": sum(box["bytes"] for box in outboxes),
            "bytes_max": sum(box["bytes_max"] for box in outboxes),
            "entries": sum(box["entries"] for box in outboxes),
            "full": any(box["full"] for box in outboxes),
            "blocked": [item for box in outboxes for item in box["blocked"]][:BLOCKED_MAX],
        },
        "providers": _providers(standings),
        "topics": topics[offset : offset + limit],
        "topics_matching": total("topics_matching"),
        "topics_total": total("topics_total"),
    }


def page_of(query: Mapping[str, str]) -> tuple[int, int]:
    """Read offset and limit. Raises: ValueError."""
    found = []
    for name, default, most in (("offset", 0, 1 << 31), ("limit", TOPICS_DEFAULT, TOPICS_MAX)):
        text = query.get(name, "")
        if text and not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise ValueError(f"{name} must be a whole number")
        found.append(min(int(text), most) if text else default)
    return found[0], found[1]


def _shard(one: Standing) -> dict[str, Any]:
    doc = one.document
    out: dict[str, Any] = {
        "number": one.number,
        "name": one.name,
        "state": one.state,
        "since": one.since_ns,
        "starts": one.starts,
        "pid": one.pid,
    }
    if one.why:
        out["why"] = one.why
    if doc is not None:
        rates = [provider["rate"] for provider in doc["providers"]]
        out |= {
            "ready": doc["ready"],
            "role": (doc.get("standby") or {}).get("role", ""),
            "run": doc["run"],
            "rate": None if None in rates else sum(rates),
            "topics": doc["topics_total"],
            "cpu_secs": doc["cpu_secs"],
            "memory_bytes": doc["memory_bytes"],
        }
    return out


def _sorted(topics: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    keys: dict[str, Callable[[dict[str, Any]], Any]] = {
        "rate": lambda topic: (-(topic["rate"] or 0.0), topic["name"]),
        "age": lambda topic: (-(topic.get("last") or {}).get("ts_recv", 0), topic["name"]),
        "count": lambda topic: (-topic["count"], topic["name"]),
    }
    return sorted(topics, key=keys.get(sort, lambda topic: topic["name"]))


def _redis(found: Sequence[dict[str, Any]], own: Mapping[str, Any]) -> dict[str, Any]:
    states = [one["state"] for one in found]
    return {
        "url": own["redis_url"],
        "bundled": own["bundled"],
        "state": max(states, key=lambda state: _STATES.index(state) if state in _STATES else 9, default="starting"),
        "away": sorted({node for one in found for node in one.get("away", ())}),
        "calls": sum(one["calls"] for one in found),
        "call_ms": _worst([one["call_ms"] for one in found]),
        "entries": sum(one["entries"] for one in found),
        "bytes": sum(one["bytes"] for one in found),
        "connects": sum(one["connects"] for one in found),
        "errors": _added([one["errors"] for one in found]),
    }


def _providers(standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """A provider that several shards hold is one, its connections led by the shard's number."""
    out: dict[str, dict[str, Any]] = {}
    for one in standings:
        for provider in one.document["providers"] if one.document is not None else ():
            links = [link | {"label": f"{one.number}:{link['label']}"} for link in provider["connections"]]
            whole = out.get(provider["name"])
            if whole is None:
                out[provider["name"]] = provider | {"connections": links}
                continue
            whole["connections"] += links
            for key in ("rate", "frames_rate"):
                known = whole[key] is not None and provider[key] is not None
                whole[key] = whole[key] + provider[key] if known else None
            for key in ("published", "gaps", "missing", "rejects", "repeats", "topics", "stale"):
                whole[key] += provider[key]
            whole["last"] = max(whole["last"] or 0, provider["last"] or 0) or None
            quotas = [one["quota"] for one in (whole, provider) if "quota" in one]
            if quotas:
                whole["quota"] = min(quotas)  # all draw on one: the last to hear of it knows best
    return list(out.values())


def _worst(found: Iterable[Mapping[str, float | None]]) -> dict[str, float | None]:
    out: dict[str, float | None] = {"p50": None, "p99": None}
    for one in found:
        for key, value in one.items():
            if value is not None:
                out[key] = max(out.get(key) or 0.0, value)
            else:
                out.setdefault(key, None)
    return out


def _added(found: Iterable[Mapping[str, int]]) -> dict[str, int]:
    out: dict[str, int] = {}
    for one in found:
        for key, value in one.items():
            out[key] = out.get(key, 0) + value
    return out
