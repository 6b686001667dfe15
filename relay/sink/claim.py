"""What makes this relay the one writer: the lease on its name, the epoch in every write, the fence on each topic.

The lease decides who should write and keeps a second relay of the name from starting by mistake. Safety rests on the
epoch alone: a relay that slept through its lease finds a newer epoch at its topics and cannot write.
"""

import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import anyio
import msgspec

from relay.outbox import Topic, order
from relay.sink.functions import library, load
from relay.sink.link import Link, ReplyError
from relay.sink.reactions import Fenced, LeaseHeld, reaction
from relay.sink.suspects import may_mean_a_topic

LEASE_SECS = 1.5
"""Without `standby.lease_secs`."""
RENEWALS = 3
"""In the time of a lease."""
PATIENCE_SECS = 2.0
"""A killed relay's lease lapses in LEASE_SECS; one that is still held after this is held by a living relay."""
FENCE_MAX = 500
"""Topics in one fence call."""


class Note(NamedTuple):
    """What the fence said of a topic: OK (last, top), FENCED (last: the epoch), OWNED (last: the owner), ERROR."""

    kind: str
    last: str
    top: str = ""


def newest_of(names: Sequence[str], notes: Sequence[Note]) -> dict[str, str]:
    """Give the newest entries of topics, by what was said when they were fenced."""
    newest = {
        name: max(note.last, note.top, key=order) for name, note in zip(names, notes, strict=True) if note.kind == "OK"
    }
    return {name: last for name, last in newest.items() if order(last) > (0, 0)}


class Claim:
    """Lease, epoch and writer keys of one relay. `epoch` 0: nothing claimed yet."""

    def __init__(self, link: Link, relay: str, prefix: str, run: int, lease_secs: float = LEASE_SECS) -> None:
        self.link, self.relay, self.prefix, self.run = link, relay, prefix, run
        self.lease_secs = lease_secs
        self.lease_ms = round(lease_secs * 1000)
        self.epoch = 0
        self.library = library()
        self.append_name, self.fence_name, self._lease_name = self.library.names
        self.lease_key = f"{prefix}relay:lease:{relay}"
        self.active_key = f"{prefix}relay:active:{relay}"
        self.epoch_key, self.topics_key = f"{prefix}relay:epoch", f"{prefix}relay:topics"
        self.value = f"{secrets.token_hex(8)} {socket.gethostname()} pid {os.getpid()}"
        self._until = 0.0
        self.renew_at = 0.0
        self.trip_secs = 0.0
        """How long the last renewal took: the way to Redis and back, with next to no work there."""
        self._writers: dict[str, str] = {}
        self._since_ns = 0

    def writer(self, name: str) -> str:
        """Give a topic's writer key, in the same cluster slot as the stream."""
        writer = self._writers.get(name)
        if writer is None:
            writer = self._writers[name] = f"{self.prefix}relay:writer:{{{name}}}"
        return writer

    async def load(self) -> None:
        """Load the function library where it is missing."""
        await load(self.link)

    # the lease

    @property
    def held(self) -> bool:
        """Whether the name is surely ours at this moment, counted from before the request that took it."""
        return time.monotonic() < self._until

    @property
    def renew_secs(self) -> float:
        """The pause between two renewals."""
        return self.lease_secs / RENEWALS

    def taken(self, before: float) -> None:
        """Note that a request of this (monotonic) time has taken the lease."""
        self._until = before + self.lease_secs
        self.renew_at = before + self.renew_secs

    async def acquire(self, *, takeover: bool, stopping: Callable[[], bool]) -> bool:
        """Take the lease on the relay's name; False where `stopping` came first. Raises: LeaseHeld."""
        deadline = time.monotonic() + PATIENCE_SECS
        only_new = () if takeover else ("NX",)
        while not stopping():
            before = time.monotonic()
            if await self.link.call("SET", self.lease_key, self.value, "PX", self.lease_ms, *only_new):
                self.taken(before)
                return True
            holder = ((await self.link.call("GET", self.lease_key)) or b"").decode(errors="replace")
            if holder == self.value:  # the reply that said so was lost
                await self.renew()
                return True
            if holder and before >= deadline:
                raise LeaseHeld(
                    f"a relay named {self.relay!r} already runs ({who(holder)}): stop it, give this one another "
                    "`name`, or start it with --takeover"
                )
            await anyio.sleep(0.1)
        return False

    async def renew(self) -> bool:
        """Hold the lease on; True: it had lapsed, or was lost. Raises: Fenced where somebody else has it."""
        before = time.monotonic()
        holder = await self.link.call("FCALL", self._lease_name, 1, self.lease_key, self.value, self.lease_ms)
        if isinstance(holder, bytes):
            raise self.fenced(f"its lease is held by {who(holder.decode(errors='replace'))}")
        self.trip_secs = time.monotonic() - before
        self.taken(before)
        return bool(holder == 2)

    async def identity(self) -> tuple[str, str] | None:
        """Ask who answers: the server's run and its history; None where that may not be asked."""
        try:
            lines = b"\n".join([await self.link.call("INFO", part) for part in ("server", "replication")]).decode()
        except ReplyError:
            return None
        known = dict(line.strip().partition(":")[::2] for line in lines.splitlines())
        return known.get("run_id", ""), known.get("master_replid", "")

    async def release(self) -> None:
        """Give the lease back, if it is ours."""
        if self.epoch and self.held:
            await self.link.call("DEL", self.active_key)
        if self._until:
            await self.link.call("FCALL", self._lease_name, 1, self.lease_key, self.value, 0)

    async def announce(self, now_ns: int) -> None:
        """Say for all to read who writes under this name, since when, at which epoch."""
        self._since_ns = now_ns
        fields = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "epoch": self.epoch,
            "since": now_ns,
            "clock": now_ns,
        }
        await self.link.call("HSET", self.active_key, *[item for pair in fields.items() for item in pair])

    async def show_clock(self, now_ns: int) -> None:
        """Let the standbys know what our clock shows: by it they find where in the streams they go on."""
        await self.link.call("HSET", self.active_key, "clock", now_ns)

    def fenced(self, why: str) -> Fenced:
        """Make the error that ends this relay."""
        return Fenced(f"another relay named {self.relay!r} has taken over ({why}): this one stops writing")

    # epoch and fence

    async def begin(self, names: Sequence[str], *may: str) -> dict[str, str]:
        """Take a new epoch and fence the topics of earlier runs and `names`. Give the newest entry of each.

        `may`: relays whose topics may be taken.
        """
        # where Redis has lost the counter, it goes on above all that it ever gave, not from 1: a writer that was away
        # meanwhile must not find its own epoch at the topics
        await self.link.call("SET", self.epoch_key, time.time_ns() // 1_000_000, "NX")
        epoch = int(await self.link.call("INCR", self.epoch_key))
        names = list(dict.fromkeys([*await self.ours(), *names]))
        epoch = await self._above(names, epoch)
        while True:
            notes = await self.fence(names, *may, epoch=epoch)
            newer = [int(note.last) for note in notes if note.kind == "FENCED"]
            if not newer:
                self.epoch = epoch
                return newest_of(names, notes)
            # the counter was lost or restored, the topics' epochs were not; the lease is ours, so go above them
            epoch = max(newer) + 1

    async def _above(self, names: Sequence[str], epoch: int) -> int:
        """Give an epoch that no topic has: the counter lies beside them, so its next one is."""
        return epoch

    def unheard(self) -> list[str]:
        """Give the topics of which `begin` found out nothing, as their node is away."""
        return []

    async def hear(self, *may: str) -> dict[str, str]:
        """Ask for those again. As `begin`."""
        return {}

    async def fence(self, names: Sequence[str], *may: str, epoch: int = 0) -> list[Note]:
        """Set our epoch at topics. `may`: relays whose topics may be taken. Gives a note a name, in order."""
        notes: list[Note] = []
        for start in range(0, len(names), FENCE_MAX):
            part = names[start : start + FENCE_MAX]
            keys = [key for name in part for key in (name, self.writer(name))]
            command = ("FCALL", self.fence_name, 1 + len(keys), self.epoch_key, *keys)
            try:
                replies = await self.link.call(*command, self.relay, epoch or self.epoch, *may)
            except ReplyError as error:
                if reaction(str(error))[0] == "isolate" and len(part) == 1:
                    notes.append(Note("ERROR", str(error)))
                elif may_mean_a_topic(str(error)) and len(part) > 1:
                    notes += await self._one_by_one(part, may, epoch)
                else:
                    raise
                continue
            notes += map(note_of, replies)
        return notes

    async def _one_by_one(self, names: Sequence[str], may: Sequence[str], epoch: int) -> list[Note]:
        """Fence each topic by itself: one of their keys is refused. Raises: ReplyError where all of them are."""
        notes: list[Note] = []
        for name in names:
            try:
                notes += await self.fence([name], *may, epoch=epoch)
            except ReplyError as error:
                if not may_mean_a_topic(str(error)) or len(notes) + 1 == len(names) == _errors(notes) + 1:
                    raise
                notes.append(Note("ERROR", str(error)))
        return notes

    async def lives(self, relay: str) -> bool:
        """Tell whether a relay of this name runs."""
        return bool(await self.link.call("EXISTS", f"{self.prefix}relay:lease:{relay}"))

    # relay:topics

    async def listed(self) -> dict[str, dict[str, Any]]:
        """All topics in the list: kind, provider and the relay that wrote each last."""
        listed = await self.link.call("HGETALL", self.topics_key)
        return {
            name.decode(errors="replace"): fields(text)
            for name, text in zip(listed[::2], listed[1::2], strict=True)
        }  # fmt: skip

    async def ours(self) -> list[str]:
        """Names of the topics that this relay has written, now or in earlier runs."""
        return [name for name, about in (await self.listed()).items() if about.get("relay") == self.relay]

    async def written(self, name: str) -> tuple[str, str]:
        """Give a topic's owner and newest entry by its writer key; empty text and `0-0` where there is none."""
        owner, last = await self.link.call("HMGET", self.writer(name), "owner", "last")
        return (owner or b"").decode(errors="replace"), (last or b"0-0").decode()

    async def give(self, names: Sequence[str], to: str) -> None:
        """Make another relay the owner of topics, where they are ours; it fences them when it wants to write."""
        for start in range(0, len(names), FENCE_MAX):
            part = names[start : start + FENCE_MAX]
            keys = [key for name in part for key in (name, self.writer(name))]
            # epoch 0: below any that the new owner has or takes
            command = ("FCALL", self.fence_name, 1 + len(keys), self.epoch_key, *keys, to, 0, self.relay)
            await self.link.call(*command)

    async def register(self, topics: Sequence[Topic]) -> None:
        """Note topics in relay:topics, so that readers need not SCAN. `first_seen` stays what it was."""
        if not topics:
            return
        known = await self.link.call("HMGET", self.topics_key, *[topic.name for topic in topics])
        changed: list[str | bytes] = []
        for topic, text in zip(topics, known, strict=True):
            entry = {"kind": topic.kind, "provider": topic.provider, "relay": self.relay}
            old = fields(text)
            if {name: old.get(name) for name in entry} != entry:
                changed += [topic.name, msgspec.json.encode({**entry, "first_seen": old.get("first_seen", self.run)})]
        if changed:
            await self.link.call("HSET", self.topics_key, *changed)


def note_of(reply: bytes) -> Note:
    """Read what the fence says of one topic."""
    kind, _, rest = reply.decode(errors="replace").partition(" ")
    return Note(kind, *rest.split(" ")) if kind == "OK" else Note(kind, rest)


def fields(text: bytes | None) -> dict[str, Any]:
    """Read one value of relay:topics; nothing where somebody else wrote it."""
    try:
        return msgspec.json.decode(text or b"{}", type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}


def _errors(notes: Sequence[Note]) -> int:
    return sum(note.kind == "ERROR" for note in notes)


def who(value: str) -> str:
    """Name the holder of a lease: host and process."""
    return value.partition(" ")[2] or "unknown"
