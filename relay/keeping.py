"""The spool's place in the bridge: opens it, hands back what earlier runs have left, keeps it and memory in bounds."""

import contextlib
import ctypes
import gc
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio

from relay.clock import Clock
from relay.config import EMBEDDED, Config, data_dir_of, prefix_of
from relay.errors import SpoolUnusable
from relay.model import ACCOUNT_CHANNELS, Status
from relay.outbox import Outbox, Topic
from relay.providers.base import Options, Subscription
from relay.shards import mark_of, siblings_of
from relay.sink import Sink
from relay.spool import Found, Spool
from relay.spooled import SpooledOutbox
from relay.targets import target_of

RECENT_MS = 60_000
"""A run that ended so recently was ours: feeds start before Redis has said that nobody else has the name."""
CONTACT_SECS = 3.0
"""Else feeds wait so long for a Redis that is reachable: a relay of the same name may be running."""
HIGH_SHARE, LOW_SHARE = 0.9, 0.75
"""Parts of `memory_mb_max` at which memory counts as short, and as plenty again."""
EPOCH_FILE = "epoch"
"""In the spool's folder: under which epoch its newest entries were accepted. A newer one at a topic makes them void."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
AWAY_SECS = 1.0
"""A planned stop waits so long for a Redis that is away."""
DAMAGED_SECS = 10.0
"""After damage in the spool only Redis knows where its streams end."""


class Keeping:
    """The spool of one relay, or none."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        prefix: str,
        event: Callable[..., None],
        told: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """`event`: the log. `told(kind, fields)`: what the spool tells, once there is an intake."""
        self._clock, self._log, self._told = clock, event, told
        self.spool: Spool | None = None
        self.found = Found()
        self.newest_ms = 0
        self.early: list[tuple[str, dict[str, Any]]] = []
        """What there was to tell before there was an intake."""
        self._built = False
        self._memory_mb_max = config.memory_mb_max
        self.memory_mb = 0.0
        self._moved = False
        """A shard that was dealt other topics, or none, in its last run: only Redis knows where they end."""
        self.tight = False
        """Memory is short: as little as can be is held there."""
        self._sink: Sink | None = None
        outbox = config.outbox
        if not config.spool.enabled:
            self.outbox = Outbox(outbox.bytes_max, outbox.topic_bytes_max)
            return
        settings = config.spool
        where, folder = _where(config), spool_folder(config)
        shard = config.shard
        dealt = {} if shard is None else {"dealt": mark_of(shard)}
        self._moved = shard is not None and _about(folder).get("dealt") != dealt["dealt"]
        spool = Spool(
            folder,
            segment_bytes=settings.segment_bytes,
            retention_secs=settings.retention_secs,
            bytes_max=settings.bytes_max,
            fsync=settings.fsync,
            pack=settings.pack,
            on_event=self._event,
            target={"redis": where, "prefix": prefix, "relay": config.name} | dealt,
            beside=() if shard is None else siblings_of(shard),
        )
        try:
            self.found = spool.open()
        except SpoolUnusable as error:
            event("warning", "no spool: a crash can lose what Redis has not confirmed", why=str(error))
            self.outbox = Outbox(outbox.bytes_max, outbox.topic_bytes_max)
            return
        self.spool = spool
        self.newest_ms = spool.newest_ms
        if self.newest_ms:
            clock.raise_floor(self.newest_ms + 1)
        run = clock() // 1_000_000
        self.outbox = spooled = SpooledOutbox(outbox.bytes_max, outbox.topic_bytes_max, spool, run)
        spooled.hole = self._hole
        topics, given = spooled.topics, spooled.given
        spool.confirmed = lambda name: (
            (topics[name].last, bool(topics[name].blocked))
            if name in topics
            else (given.get(name, ""), name not in given)
        )
        self._recover(spooled)

    def _recover(self, outbox: SpooledOutbox) -> None:
        found = self.found
        for name, last in found.last.items():
            about = found.about.get(name)
            topic = outbox.topic(name, about.kind if about else "", about.provider if about else "")
            topic.contiguous = about is not None and about.contiguous
            outbox.recover(topic, last, found.marks.get(name, ""), found.bodies.get(name))
        found.bodies = {}

    def renumber(self, run: int) -> None:
        """A run begins now."""
        if isinstance(self.outbox, SpooledOutbox):
            self.outbox.run = run
        if self.spool is not None:
            self.spool.begin_run()

    @property
    def epoch(self) -> int:
        """The epoch under which the newest entries of the spool were accepted; 0: not known."""
        try:
            return int((self.spool.folder / EPOCH_FILE).read_text()) if self.spool is not None else 0
        except (OSError, ValueError):
            return 0

    def _claimed(self, epoch: int) -> None:
        if self.spool is not None:
            with contextlib.suppress(OSError):  # then the entries count as sent by nobody else, as without the file
                (self.spool.folder / EPOCH_FILE).write_text(f"{epoch}\n")

    async def contact(self, sink: Sink, wait: bool = True) -> None:
        """Wait until feeds may start: at once where our last run has just ended, else for a first word with Redis.

        `wait` False: feeds may start now, what they give is not numbered yet.
        """
        self._sink = sink
        self._built = True
        sink.claimed = self._claimed
        for name, fields in self.early:
            self._told(name, fields)
        if not wait:
            return
        if self.spool is None or self._moved:
            await sink.ready.wait()
            return
        age_ms = self._clock() // 1_000_000 - self.newest_ms
        if self.found.damaged or self.found.torn:
            with anyio.move_on_after(DAMAGED_SECS):
                await sink.ready.wait()
        elif age_ms > RECENT_MS:
            with anyio.move_on_after(CONTACT_SECS):
                while not sink.ready.is_set() and sink.state == "starting":  # noqa: ASYNC110 -- two things are awaited
                    await anyio.sleep(0.02)

    def waits(self, subscriptions: Iterable[Subscription], options: Options) -> bool:
        """Tell whether a connection stops reading while memory and disk are full: what may be conflated need not."""
        channels = {subscription.channel for subscription in subscriptions}
        spool = self.spool
        if channels == {"quotes"} and options.when_full.get("quotes") == "latest":
            return False
        if spool is not None and channels and channels <= ACCOUNT_CHANNELS:
            return spool.brimful or not spool.ok
        return True

    async def run(self) -> None:
        """Make the spool safe now and then."""
        if self.spool is not None:
            await self.spool.run()

    def watch(self) -> None:
        """Once a second: let go of what is old, note what Redis has, look at memory."""
        spool = self.spool
        if spool is not None:
            if self._sink is not None and self._sink.ready.is_set():
                topics = self.outbox.topics.values()
                spool.acknowledge({topic.name: topic.acked for topic in topics if topic.acked})
            spool.tidy(self._clock() // 1_000_000)
            self.outbox.flush()
        self._look_at_memory()

    def _look_at_memory(self) -> None:
        """Hold less in memory when the process comes near its bound, and say so."""
        most = self._memory_mb_max
        if not most:
            return
        self.memory_mb = memory_mb()
        if not self.tight and self.memory_mb > most * HIGH_SHARE:
            self.tight = True
            self.outbox.tighten(True)
            gc.collect()
            give_back()
            self._event("memory_high", {"memory_mb": round(self.memory_mb), "memory_mb_max": most})
        elif self.tight and self.memory_mb < most * LOW_SHARE:
            self.tight = False
            self.outbox.tighten(False)
            self._event("memory_fine", {"memory_mb": round(self.memory_mb)})
        elif self.tight:
            give_back()

    def drain_secs(self, most: float) -> float:
        """How long a planned stop waits for Redis: not long for one that is away, the spool keeps all."""
        sink = self._sink
        away = sink is not None and sink.state != "flowing"
        return min(most, AWAY_SECS) if away and self.spool is not None and self.spool.ok else most

    def left(self, entries: int) -> None:
        """The last word of a planned stop: what Redis could not take is in the spool, or lost."""
        spool, event = self.spool, self._log
        if spool is not None:
            self.watch()
            spool.close()
            if entries and spool.ok:
                event("info", "what Redis could not take waits in the spool for the next start", entries=entries)
                return
        if entries:
            event("error", "stopped with messages that Redis could not take", entries=entries)

    def close(self) -> None:
        """Let go of the folder, however the relay ends."""
        if self.spool is not None:
            self.spool.close()

    def _hole(self, topic: Topic, status: Status) -> None:
        self._event("hole", {"topic": topic.name, "status": status})

    def _event(self, name: str, fields: dict[str, Any]) -> None:
        if self._built:
            self._told(name, fields)
        else:
            self.early.append((name, fields))


def _about(folder: Path) -> dict[str, Any]:
    """Read whose spool a folder holds; nothing where there is none."""
    try:
        found = json.loads((folder / "about.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def memory_mb() -> float:
    """Give what this process holds in memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE_BYTES / 1_000_000
    except (OSError, ValueError, IndexError):
        return 0.0


def give_back() -> None:
    """Let the C library return what it has freed, where it can (glibc)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def spool_folder(config: Config) -> Path:
    """Give the folder of a relay's spool for its Redis and prefix."""
    mark = hashlib.sha256(f"{_where(config)}\n{prefix_of(config)}\n{config.name}".encode()).hexdigest()[:8]
    return Path(config.spool.dir or Path(config.state_dir) / "spool") / f"{config.name}-{mark}"


def _where(config: Config) -> str:
    """Name a Redis without its secrets: the same server under another login is the same."""
    if config.redis.url == EMBEDDED:
        return f"embedded {Path(data_dir_of(config)).resolve()}"
    target = target_of(config.redis.url)
    if target is not None:
        return target.shown  # of Sentinel the service, not the server that happens to be its primary
    parts = urlsplit(config.redis.url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}?{parts.query}"
