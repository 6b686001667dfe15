"""How a standby waits for the lease on its name, and what it reads before it goes on behind the writer before it."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from relay import holes
from relay.outbox import Outbox, order
from relay.seam import Tail
from relay.sink.claim import Claim, who
from relay.sink.link import Link, ReplyError
from relay.sink.pace import BACKOFF_CAP_SECS

POLLS = 20
"""Looks at the lease in the time of one: a takeover is late by half the pause in the mean."""
HOLD_LEASES = 2
"""A lease that was free at the first look may belong to a writer that only lost its Redis, as we did: it comes back."""
PATIENCE_LEASES = 3
"""A lease that nobody takes for so long is taken even by a node that had better not: a gap is better than silence."""
AGAIN_SECS = 0.1
"""A cluster is asked this often whether a node that is away has a successor."""
CLOCKS = 80
"""Newest looks at the writer's clock that count: about four leases."""
LIFT_NS = 1_000_000_000
"""A writer's clock that is ahead by less is left alone: two clocks are never the same."""
TAILS = 200
"""Streams asked together."""
NUMBERED_WITHIN = 50
"""Entries from the end among which one that carries a number is looked for."""
ALIKE = {b"trade": 50, b"order": 200, b"position": 200, b"balance": 200, b"account": 200}
"""Entries from the end that are compared, by type, where there is no number."""


@dataclass
class Active:
    """Who writes under our name, as Redis says."""

    holder: str = ""
    """Host and process; empty: nobody."""
    epoch: int = 0
    since_ns: int = 0


@dataclass
class Found:
    """What the writer before us has left."""

    before: Active = field(default_factory=Active)
    tails: dict[str, Tail] = field(default_factory=dict)
    floor_ms: int = 0
    """All it wrote lies below."""
    skew_ns: int = 0
    """What its clock showed more than ours; rather too much, by a look's pause: messages come twice, none is lost."""


class Standing:
    """One node's wait. `may()`: why it must not compete yet, in words; empty: it may. `clock`: the relay's own.

    `spool_epoch`: the epoch under which the entries in our spool were accepted; 0: there are none, or it is not known.
    `changed`: called after each look that found something new. `voided(entries)`: called when another node has made
    void what our spool held, at most so many entries that Redis lacked. `lift(ms)`: called when the writer's clock is
    ahead of ours: a takeover would lift ours anyway, and then it would jump under the feeds. `taking(whether)`: called
    with True before our clock may be lifted to the end of the streams, with False when it is not our turn after all.
    `waits(topics)`: called once where nobody can tell how some topics end, as a cluster's node is away with the writer;
    `patience()`: whether such a takeover may wait on.
    """

    def __init__(self, clock: Callable[[], int], may: Callable[[], str], spool_epoch: int) -> None:
        self._clock, self._may, self.spool_epoch = clock, may, spool_epoch
        self.changed: Callable[[], None] = lambda: None
        self.lift: Callable[[int], None] = lambda ms: None
        self.voided: Callable[[int], None] = lambda entries: None
        self.taking: Callable[[bool], None] = lambda whether: None
        self.waits: Callable[[list[str]], None] = lambda topics: None
        self.patience: Callable[[], bool] = lambda: False
        self.active = Active()
        self.found = Found()
        self.held_ns = 0
        """When the lease was last seen in another's hands, by our clock."""
        self.took_over = 0
        self._clocks: deque[int] = deque(maxlen=CLOCKS)

    async def acquire(self, claim: Claim, outbox: Outbox, *, takeover: bool, stopping: Callable[[], bool]) -> bool:
        """Wait for the lease and take it; False where `stopping` came first. Raises: LinkLost, ReplyError."""
        self.taking(False)
        hold_secs = HOLD_LEASES * claim.lease_secs + BACKOFF_CAP_SECS
        patience_secs = hold_secs + PATIENCE_LEASES * claim.lease_secs
        free_since = time.monotonic()
        held = False  # by another, seen on this connection
        await self._void(claim, outbox)  # now there is time
        while not stopping():
            replies = await claim.link.calls([("GET", claim.lease_key), ("HGETALL", claim.active_key)])
            for reply in replies:
                if isinstance(reply, ReplyError):
                    raise reply
            holder = (replies[0] or b"").decode(errors="replace")
            if holder == claim.value:  # the reply that said so was lost
                await claim.renew()
                return True
            before = time.monotonic()
            if holder:
                held, free_since = True, before
            self._look(holder, replies[1])
            why, free_secs = self._may(), before - free_since
            competes = (not why and (held or free_secs >= hold_secs)) or free_secs >= patience_secs
            force = takeover and not why
            if force or (competes and not holder):
                how = () if force else ("NX",)
                if await claim.link.call("SET", claim.lease_key, claim.value, "PX", claim.lease_ms, *how):
                    claim.taken(before)
                    return True
            await anyio.sleep(claim.lease_secs / POLLS)
        return False

    def _look(self, holder: str, listed: Any) -> None:
        fields = _fields(listed)
        now = self._clock()
        active = Active()
        if holder:
            active = Active(who(holder), _whole(fields.get("epoch")), _whole(fields.get("since")))
            self.held_ns = now
            theirs = _whole(fields.get("clock"))
            if theirs - now > LIFT_NS:
                self.lift(theirs // 1_000_000)
                self._clocks.clear()
            elif theirs:
                self._clocks.append(theirs - now)
            self.found.before = active
        if active != self.active:
            if active.epoch != self.active.epoch:
                self._clocks.clear()
            self.active = active
            self.changed()

    def skew_ns(self, lease_secs: float) -> int:
        """What the writer's clock showed more than ours: a look at it is old, never young, so the largest is best."""
        return max(self._clocks) + int(lease_secs / POLLS * 1e9) if self._clocks else 0

    async def begin(self, claim: Claim, outbox: Outbox, names: Sequence[str] = (), may: Sequence[str] = ()) -> None:
        """Take a new epoch and fence all topics, `names` too (see Claim); then read how they end.

        Raises: LinkLost, ReplyError: then it begins again.
        """
        self.taking(True)
        await self._void(claim, outbox)
        earlier = await claim.begin([*outbox.topics, *names], *may)
        try:
            await self._hear(claim, earlier, may)
        finally:
            epoch, claim.epoch = claim.epoch, 0
        found = Found(before=self.found.before, skew_ns=self.skew_ns(claim.lease_secs))
        found.tails, before = await _tails(claim.link, earlier)
        found.floor_ms = max((order(last)[0] for last in earlier.values()), default=0) + 1
        outbox.know(earlier, before)
        self.found = found
        claim.epoch = epoch
        now = self._clock()
        self.active = Active(who(claim.value), epoch, now)
        await claim.announce(now)
        self.took_over += 1

    async def _hear(self, claim: Claim, earlier: dict[str, str], may: Sequence[str]) -> None:
        """Wait for the ends of topics whose node is away: without them the ring would repeat what stands there."""
        if claim.unheard():
            self.waits(claim.unheard())
        while claim.unheard() and self.patience():
            await anyio.sleep(AGAIN_SECS)
            if time.monotonic() >= claim.renew_at:
                await claim.renew()
            earlier |= await claim.hear(*may)

    async def _void(self, claim: Claim, outbox: Outbox) -> None:
        """What our spool holds is void once another node has fenced its topics; else it is sent as ever."""
        names = [topic.name for topic in outbox.topics.values() if topic.last_id]
        if self.spool_epoch and any(epoch > self.spool_epoch for epoch in await _epochs(claim, names)):
            self.spool_epoch = 0
            self.voided(outbox.void())


async def _epochs(claim: Claim, names: Iterable[str]) -> list[int]:
    """Read at which epochs topics were fenced last."""
    names = list(names)
    out: list[int] = []
    for begin in range(0, len(names), TAILS):
        part = names[begin : begin + TAILS]
        replies = await claim.link.calls([("HGET", claim.writer(name), "epoch") for name in part])
        out += [_whole(reply) for reply in replies if not isinstance(reply, ReplyError)]
    return out


async def _tails(link: Link, earlier: Mapping[str, str]) -> tuple[dict[str, Tail], dict[str, bytes]]:
    """Read how streams end: by topic what is compared where there are no numbers, and the newest body with a number."""
    tails: dict[str, Tail] = {}
    before: dict[str, bytes] = {}
    further: dict[str, int] = {}
    for name, bodies in (await _ends(link, dict.fromkeys(earlier, 1))).items():
        tails[name] = Tail(earlier[name])
        if not bodies:
            continue
        if holes.number_after(bodies[0]) is not None:
            before[name] = bodies[0]
            continue
        kind = bodies[0].partition(b'"type":"')[2].partition(b'"')[0]
        count = NUMBERED_WITHIN if kind == b"status" else ALIKE.get(kind, 0)
        if count:
            further[name] = count
    for name, bodies in (await _ends(link, further)).items():
        numbered = next((body for body in bodies if holes.number_after(body) is not None), None)
        if numbered is not None:
            before[name] = numbered
        else:
            tails[name] = Tail(earlier[name], bodies, whole=len(bodies) < further[name])
    return tails, before


async def _ends(link: Link, counts: Mapping[str, int]) -> dict[str, list[bytes]]:
    """Read the newest entries of streams, so many of each."""
    out: dict[str, list[bytes]] = {}
    names = list(counts)
    for begin in range(0, len(names), TAILS):
        part = names[begin : begin + TAILS]
        replies = await link.calls([("XREVRANGE", name, "+", "-", "COUNT", counts[name]) for name in part])
        for name, reply in zip(part, replies, strict=True):
            rows = reply if isinstance(reply, list) else []
            out[name] = [fields[1] for _, fields in rows if fields and fields[0] == b"data"]
    return out


def _fields(listed: Any) -> dict[str, bytes]:
    texts = [item for item in listed or ()]
    return {name.decode(errors="replace"): value for name, value in zip(texts[::2], texts[1::2], strict=False)}


def _whole(value: Any) -> int:
    text = value.decode(errors="replace") if isinstance(value, bytes) else ""
    return int(text) if text.isascii() and text.isdecimal() else 0
