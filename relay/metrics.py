"""What Prometheus reads: every number of the relay under its name, made of plain ints at the moment of a scrape.

`METRICS` is the whole list, with kind, labels and help; README.md shows the same (a test compares). Labels come from
small closed sets: our names of providers and connections, channels, reasons; never a symbol.
"""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from relay import __version__, gathered, stats
from relay.histogram import Histogram
from relay.provider_state import ProviderState, Running

COUNTER, GAUGE, HISTOGRAM = CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily


class About(NamedTuple):
    """One metric's kind, help text and labels."""

    kind: type[CounterMetricFamily] | type[GaugeMetricFamily] | type[HistogramMetricFamily]
    help: str
    labels: tuple[str, ...] = ()


_CONNECTION = ("provider", "connection")
_PROVIDER = ("provider",)

METRICS: dict[str, About] = {
    # the relay
    "relay_build_info": About(GAUGE, "Always 1; version of the relay and of Python.", ("version", "python")),
    "relay_start_timestamp_seconds": About(GAUGE, "When this run began."),
    "relay_ready": About(GAUGE, "1: Redis is up and a feed is live, or it stands by, as /readyz says."),
    "relay_loop_lag_seconds": About(
        HISTOGRAM, "How much later than wished the event loop came back, 4 times a second."
    ),
    "relay_reloads_total": About(COUNTER, "Reloads by SIGHUP: applied, unchanged, refused.", ("result",)),
    "relay_config_loaded_timestamp_seconds": About(GAUGE, "When the configuration that runs was loaded."),
    # connections
    "relay_connection_up": About(GAUGE, "1: a session is open.", _CONNECTION),
    "relay_connection_given_up": About(GAUGE, "1: refused for good, not tried again until a reload.", _CONNECTION),
    "relay_connects_total": About(COUNTER, "Tries to connect.", _CONNECTION),
    "relay_sessions_opened_total": About(COUNTER, "Sessions that were opened.", _CONNECTION),
    "relay_sessions_ended_total": About(COUNTER, "Sessions and tries that ended, by code.", (*_CONNECTION, "code")),
    "relay_frames_received_total": About(COUNTER, "WebSocket messages received.", _CONNECTION),
    "relay_received_bytes_total": About(COUNTER, "Bytes of those frames.", _CONNECTION),
    "relay_frames_useful_total": About(COUNTER, "Those that gave messages, notices or rejects.", _CONNECTION),
    "relay_frames_useless_total": About(COUNTER, "Known frames that gave nothing: heartbeats, acks.", _CONNECTION),
    "relay_frames_fatal_total": About(COUNTER, "Frames whose reading ended their session.", _CONNECTION),
    "relay_frames_sent_total": About(COUNTER, "WebSocket messages sent.", _CONNECTION),
    "relay_rest_requests_total": About(COUNTER, "REST calls made for the provider.", _CONNECTION),
    "relay_provider_faults_total": About(COUNTER, "Faults of our code for the provider: report these.", _CONNECTION),
    # messages
    "relay_messages_made_total": About(COUNTER, "Messages that the provider's frames gave.", _PROVIDER),
    "relay_messages_published_total": About(COUNTER, "Those that were numbered and handed on.", _PROVIDER),
    "relay_messages_dropped_total": About(
        COUNTER,
        "Those that were not, by reason: repeat (or late), outside (any subscription), conflated, overflow (a gap).",
        ("provider", "reason"),
    ),
    "relay_messages_held": About(GAUGE, "Those kept back for the moment, to be conflated or published.", _PROVIDER),
    "relay_messages_numbered_total": About(
        COUNTER, "Entries numbered by channel, gaps and notices in band included.", ("provider", "channel")
    ),
    "relay_rejects_total": About(
        COUNTER, "What could not be used and went to the dead letters.", ("provider", "reason")
    ),
    "relay_gaps_total": About(COUNTER, "Gaps declared in band.", _PROVIDER),
    "relay_missing_messages_total": About(
        COUNTER, "Messages missing in gaps, where the provider numbers them.", _PROVIDER
    ),
    "relay_topics": About(GAUGE, "Topics written in this run.", _PROVIDER),
    "relay_topics_stale": About(GAUGE, "Things subscribed to that are silent for too long.", _PROVIDER),
    "relay_topics_blocked": About(GAUGE, "Topics that Redis refuses or another relay owns."),
    "relay_last_message_timestamp_seconds": About(GAUGE, "When the last message of the provider came.", _PROVIDER),
    "relay_quota_remaining": About(GAUGE, "What is left of the provider's quota, where it says so.", _PROVIDER),
    "relay_event_to_receipt_seconds": About(
        HISTOGRAM, "From the provider's time to receipt, sampled; both clocks are part of it.", _PROVIDER
    ),
    "relay_receipt_to_stored_seconds": About(HISTOGRAM, "From receipt to the answer of Redis, sampled a call."),
    # Redis and what waits for it
    "relay_outbox_bytes": About(GAUGE, "Bytes that wait for Redis."),
    "relay_outbox_bytes_max": About(GAUGE, "Their bound: there the feeds wait."),
    "relay_outbox_entries": About(GAUGE, "Entries that wait for Redis, in memory."),
    "relay_outbox_age_seconds": About(GAUGE, "Age of the oldest entry that waits, in memory or in the spool."),
    "relay_outbox_full": About(GAUGE, "1: the feeds wait."),
    "relay_redis_up": About(GAUGE, "1: Redis takes what is written."),
    "relay_redis_nodes_away": About(GAUGE, "Nodes of a cluster that take nothing: their topics wait."),
    "relay_redis_connects_total": About(COUNTER, "Connections opened to Redis."),
    "relay_redis_errors_total": About(COUNTER, "Errors of Redis by what was done about them.", ("reaction",)),
    "relay_redis_call_seconds": About(HISTOGRAM, "Duration of calls that append."),
    "relay_redis_batch_entries": About(HISTOGRAM, "Entries in a call."),
    "relay_entries_stored_total": About(COUNTER, "Entries that Redis has confirmed."),
    "relay_stored_bytes_total": About(COUNTER, "Bytes of those entries."),
    "relay_entries_confirmed_late_total": About(COUNTER, "Of those: arrived although the answer was lost."),
    "relay_entries_restamped_total": About(COUNTER, "Entries that got a later time because the clock was behind."),
    "relay_entries_trimmed_total": About(COUNTER, "Entries trimmed beside the streams' length, for memory or age."),
    "relay_streams_lost_total": About(COUNTER, "Times a topic came back from Redis with less than it had taken."),
    "relay_streams_deleted_total": About(COUNTER, "Streams that somebody deleted."),
    "relay_publishes_refused_total": About(COUNTER, "Entries that were stored and could not be published."),
    # standing by, where the configuration asks for it
    "relay_standby_active": About(GAUGE, "1: this node writes; 0: it stands by."),
    "relay_standby_ready": About(GAUGE, "1: this node writes, or could take over now."),
    "relay_standby_role_timestamp_seconds": About(GAUGE, "Since when it has this role."),
    "relay_standby_epoch": About(GAUGE, "Epoch of the node that writes; 0: none is known."),
    "relay_standby_takeovers_total": About(COUNTER, "Times this node took over since it last began to stand by."),
    "relay_standby_ring_seconds": About(GAUGE, "How far back it could go on from."),
    "relay_standby_ring_bytes": About(GAUGE, "Memory that this takes, estimated."),
    # files
    "relay_spool_bytes": About(GAUGE, "Size of the spool, where there is one."),
    "relay_spool_up": About(GAUGE, "1: the disk takes what is accepted."),
    "relay_spool_dropped_total": About(
        COUNTER, "Entries deleted from the spool before Redis had them: full or too old."
    ),
    "relay_spool_damaged_total": About(COUNTER, "Damaged places found in the spool, each said as a gap."),
    "relay_journal_up": About(GAUGE, "1: frames are recorded; 0: the recording stands still."),
    "relay_journal_records_lost_total": About(COUNTER, "Records that could not be written."),
    "relay_journal_written_bytes_total": About(COUNTER, "Bytes of recordings written."),
    # conservation (relay/stats.py): always 0
    "relay_conservation_frames": About(GAUGE, "Frames unaccounted for: 0, or the relay has a bug.", _PROVIDER),
    "relay_conservation_messages": About(GAUGE, "Messages unaccounted for: 0, or the relay has a bug.", _PROVIDER),
    "relay_conservation_entries": About(GAUGE, "Entries unaccounted for: 0, or the relay has a bug."),
}

PROCESS = {
    "process_cpu_seconds_total": "CPU time of the relay.",
    "process_resident_memory_bytes": "Memory of the relay.",
    "process_virtual_memory_bytes": "Address space of the relay.",
    "process_start_time_seconds": "When the process began.",
    "process_open_fds": "Open files and sockets.",
    "process_max_fds": "Their bound.",
}
"""What the client library adds about the process, where the platform tells."""


SHARDS = {
    "relay_shard_up": About(GAUGE, "`--shards` only: 1: the shard's process runs.", ("shard",)),
    "relay_shard_starts_total": About(COUNTER, "`--shards` only: times the shard was started.", ("shard",)),
}
"""What a supervisor adds; all else comes from its shards, labelled `shard`."""


class RelayCollector(Collector):
    """Reads a bridge when it is scraped."""

    def __init__(self, bridge: Running) -> None:
        self._bridge = bridge

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything."""
        yield from (_family(name) for name in METRICS)

    def collect(self) -> Iterator[Metric]:
        """Read everything now."""
        page = _Page()
        bridge = self._bridge
        _relay(page, bridge)
        for name, state in bridge.providers.items():
            _connections(page, name, state)
        _messages(page, bridge)
        _redis(page, bridge)
        _standby(page, bridge)
        _files(page, bridge)
        yield from page.families.values()


def registry_of(bridge: Running) -> CollectorRegistry:
    """Make the registry of one relay: its own metrics and those of the process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RelayCollector(bridge))
    ProcessCollector(registry=registry)
    return registry


class ShardsCollector(Collector):
    """Gives what the shards' own pages say, and what their supervisor knows of them."""

    def __init__(
        self, samples: Callable[[], Mapping[str, str]], standings: Callable[[], Sequence[gathered.Standing]]
    ) -> None:
        self._samples, self._standings = samples, standings

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading anything."""
        yield from (_family(name) for name in SHARDS)

    def collect(self) -> Iterator[Metric]:
        """Read everything now."""
        page = _Page()
        for one in self._standings():
            page.put("relay_shard_up", int(one.state == "up"), str(one.number))
            page.put("relay_shard_starts_total", one.starts, str(one.number))
        yield from page.families.values()
        # the supervisor's own process stands beside them, without a label
        own = {family.name: family for family in ProcessCollector(registry=None).collect()}
        for family in gathered.metrics(self._samples()):
            if family.name in own:
                family.samples += own.pop(family.name).samples
            yield family
        yield from own.values()


def shards_registry(
    samples: Callable[[], Mapping[str, str]], standings: Callable[[], Sequence[gathered.Standing]]
) -> CollectorRegistry:
    """Make the registry of a supervisor. `samples`: the metrics of each shard, as it serves them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ShardsCollector(samples, standings))
    return registry


def table() -> str:
    """Give the table of README.md."""
    rows = ["| metric | kind | labels | |", "|---|---|---|---|"]
    for name, about in (METRICS | SHARDS).items():
        kind = _family(name).type
        labels = " ".join(f"`{label}`" for label in about.labels)
        rows.append(f"| `{name}` | {kind} | {labels} | {about.help} |")
    rows += [
        f"| `{name}` | {'counter' if name.endswith('_total') else 'gauge'} |  | {text} |"
        for name, text in PROCESS.items()
    ]
    return "\n".join(rows) + "\n"


def _family(name: str) -> Metric:
    about = METRICS.get(name) or SHARDS[name]
    return about.kind(name.removesuffix("_total"), about.help, labels=about.labels)


class _Page:
    """The families of one scrape, made when they get their first value."""

    def __init__(self) -> None:
        self.families: dict[str, Metric] = {}

    def put(self, name: str, value: float, *labels: str) -> None:
        family = self.families.get(name)
        if family is None:
            family = self.families[name] = _family(name)
        assert not isinstance(family, HistogramMetricFamily)
        family.add_metric(labels, value)  # type: ignore[attr-defined]

    def histogram(self, name: str, histogram: Histogram, *labels: str) -> None:
        family = self.families.get(name)
        if family is None:
            family = self.families[name] = _family(name)
        assert isinstance(family, HistogramMetricFamily)
        family.add_metric(labels, buckets=histogram.buckets(), sum_value=histogram.total)


def _relay(page: _Page, bridge: Running) -> None:
    page.put("relay_build_info", 1, __version__, platform.python_version())
    page.put("relay_start_timestamp_seconds", bridge.run / 1000)
    page.put("relay_ready", int(bridge.is_ready()[0]))
    page.histogram("relay_loop_lag_seconds", bridge.vitals.lag)
    for result, count in bridge.vitals.reloads.items():
        page.put("relay_reloads_total", count, result)
    page.put("relay_config_loaded_timestamp_seconds", bridge.vitals.loaded_ns / 1e9)


def _connections(page: _Page, name: str, state: ProviderState) -> None:
    for feed in state.feeds:
        seen, which = feed.stats, (name, feed.label)
        page.put("relay_connection_up", int(feed.live), *which)
        page.put("relay_connection_given_up", int(feed.label in state.stopped), *which)
        for metric, value in (
            ("relay_connects_total", seen.connects),
            ("relay_sessions_opened_total", seen.opened),
            ("relay_frames_received_total", seen.frames),
            ("relay_received_bytes_total", seen.bytes),
            ("relay_frames_useful_total", seen.gave),
            ("relay_frames_useless_total", seen.useless),
            ("relay_frames_fatal_total", seen.ending),
            ("relay_frames_sent_total", seen.sent),
            ("relay_rest_requests_total", seen.requests),
            ("relay_provider_faults_total", seen.internal),
        ):
            page.put(metric, value, *which)
        for code, count in seen.ended.items():
            page.put("relay_sessions_ended_total", count, *which, code)


def _messages(page: _Page, bridge: Running) -> None:
    for name, state in bridge.providers.items():
        counts, source = state.source.counts, state.source
        dropped = {
            "repeat": counts.repeats,
            "outside": counts.outside,
            "conflated": counts.conflated,
            "overflow": counts.overflow,
        }
        page.put("relay_messages_made_total", counts.made, name)
        page.put("relay_messages_published_total", counts.published, name)
        for reason, count in dropped.items():
            page.put("relay_messages_dropped_total", count, name, reason)
        for reason, count in counts.reasons.items():
            page.put("relay_rejects_total", count, name, reason)
        page.put("relay_gaps_total", counts.gaps, name)
        page.put("relay_missing_messages_total", counts.missing, name)
        page.put("relay_topics", len(source.topics), name)
        stale, last_ns = source.standing()
        page.put("relay_topics_stale", stale, name)
        if last_ns:
            page.put("relay_last_message_timestamp_seconds", last_ns / 1e9, name)
        quota = getattr(state.shared, "quota", None)
        if isinstance(quota, int):
            page.put("relay_quota_remaining", quota, name)
        page.put("relay_messages_held", counts.held, name)
        page.put("relay_conservation_frames", stats.frames(feed.stats for feed in state.feeds).difference, name)
        page.put("relay_conservation_messages", stats.messages([counts]).difference, name)
    for name, histogram in bridge.vitals.to_receipt.items():
        page.histogram("relay_event_to_receipt_seconds", histogram, name)
    page.histogram("relay_receipt_to_stored_seconds", bridge.vitals.to_stored)


def _redis(page: _Page, bridge: Running) -> None:
    outbox, sink = bridge.outbox, bridge.sink
    done = sink.stats
    numbered: dict[tuple[str, str], int] = {}
    entries = blocked = oldest = 0
    for topic in outbox.topics.values():  # there may be 10,000: once
        key = topic.provider, topic.kind
        numbered[key] = numbered.get(key, 0) + topic.seq
        if topic.ids:
            entries += len(topic.ids)
            since = _ms(topic.ids[0])
            if not oldest or since < oldest:
                oldest = since
        if topic.blocked:
            blocked += 1
    for (provider, kind), count in numbered.items():
        page.put("relay_messages_numbered_total", count, provider, kind)
    page.put("relay_outbox_bytes", outbox.size)
    page.put("relay_outbox_bytes_max", outbox.bytes_max)
    page.put("relay_outbox_entries", entries)
    page.put("relay_outbox_age_seconds", max(0.0, bridge.clock() / 1e9 - oldest / 1000) if oldest else 0)
    page.put("relay_outbox_full", int(outbox.full))
    page.put("relay_topics_blocked", blocked)
    page.put("relay_redis_up", int(sink.state == "flowing"))
    page.put("relay_redis_nodes_away", len(sink.away))
    page.histogram("relay_redis_call_seconds", done.durations)
    page.histogram("relay_redis_batch_entries", done.batches)
    for metric, value in (
        ("relay_redis_connects_total", done.connects),
        ("relay_entries_stored_total", done.entries),
        ("relay_stored_bytes_total", done.bytes),
        ("relay_entries_confirmed_late_total", done.confirmed),
        ("relay_entries_restamped_total", done.restamped),
        ("relay_entries_trimmed_total", done.trimmed),
        ("relay_streams_lost_total", done.lost),
        ("relay_streams_deleted_total", done.gone),
        ("relay_publishes_refused_total", done.unpublished),
    ):
        page.put(metric, value)
    for reaction, count in done.errors.items():
        page.put("relay_redis_errors_total", count, reaction)
    topics, intake = outbox.topics.values(), bridge.intake
    counts = [*(source.counts for source in intake.sources), *intake.departed]
    page.put("relay_conservation_entries", stats.entries(topics, counts, intake.beside).difference)


def _standby(page: _Page, bridge: Running) -> None:
    standby = bridge.standby
    if standby is None:
        return
    page.put("relay_standby_active", int(standby.live))
    page.put("relay_standby_ready", int(standby.live or standby.ready()[0]))
    page.put("relay_standby_role_timestamp_seconds", standby.role_since_ns / 1e9)
    page.put("relay_standby_epoch", standby.standing.active.epoch)
    page.put("relay_standby_takeovers_total", standby.standing.took_over)
    page.put("relay_standby_ring_seconds", standby.ring_secs)
    page.put("relay_standby_ring_bytes", standby.ring.bytes)


def _ms(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])


def _files(page: _Page, bridge: Running) -> None:
    if bridge.recorder is not None:
        journal = bridge.recorder.journal
        page.put("relay_journal_up", int(journal.state == "recording"))
        page.put("relay_journal_records_lost_total", journal.lost)
        page.put("relay_journal_written_bytes_total", journal.written)
    spool = bridge.keeping.spool
    if spool is not None:
        page.put("relay_spool_bytes", spool.bytes)
        page.put("relay_spool_up", int(spool.ok))
        page.put("relay_spool_dropped_total", spool.dropped)
        page.put("relay_spool_damaged_total", spool.damaged)


if __name__ == "__main__":
    print(table(), end="")
