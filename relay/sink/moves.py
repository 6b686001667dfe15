"""When topics are dealt to other shards than before: who wrote them hands them over, who writes them now waits for it.

At its first contact a shard gives away what it owns and is dealt to others, as soon as Redis has all that it had
accepted of it; then it looks for its own topics in the hands of siblings. One that does not live may lose them; one
that lives is waited for, for a moment. Only then are topics fenced, so that a stream goes on behind its last entry and
says what was missed.
"""

import time
from typing import Any, Protocol

import anyio

from relay.holes import number_after
from relay.outbox import Outbox, order
from relay.sink.claim import Claim

WAIT_SECS = 3.0
"""A killed sibling's lease lapses within half of this; one that is just starting gives away what is not its own."""
ASK_SECS = 0.1
TAIL = 20
"""Entries in which the newest number is looked for: notices may stand behind it."""


class LayoutLike(Protocol):
    """How topics are dealt, by names of relays (relay.shards.Layout)."""

    def home(self, topic: str) -> str | None: ...
    def is_sibling(self, owner: str) -> bool: ...


class Moves:
    """The topics of one shard that come from others or go to them."""

    def __init__(self, claim: Claim, outbox: Outbox, layout: LayoutLike) -> None:
        self._claim, self._outbox, self._layout = claim, outbox, layout
        self.leaving: dict[str, str] = {}
        """Topics to be handed over once nothing waits in them, and to whom."""
        self._coming: dict[str, dict[str, Any]] = {}

    async def prepare(self) -> tuple[list[str], list[str]]:
        """Hand over what is not ours any more, wait for what is to be ours; the lease is held.

        Gives the names of topics to be fenced besides those that we wrote, and of the relays that may lose them.
        """
        claim, layout = self._claim, self._layout
        listed = await claim.listed()
        owners = {name: str(about.get("relay", "")) for name, about in listed.items()}
        for name in {*self._outbox.topics, *(name for name, owner in owners.items() if owner == claim.relay)}:
            to = layout.home(name)
            if to is not None and to != claim.relay:
                self.leaving[name] = to
        await self.hand_over(ask=True)
        wanted = {
            name: owner
            for name, owner in owners.items()
            if owner != claim.relay and layout.is_sibling(owner) and layout.home(name) == claim.relay
        }
        self._coming = {name: listed[name] for name in wanted}
        deadline = time.monotonic() + WAIT_SECS
        while True:
            living = {owner for owner in set(wanted.values()) if await claim.lives(owner)}
            wanted = {
                name: owner
                for name, owner in wanted.items()
                if owner not in living or (await claim.written(name))[0] != claim.relay
            }
            if not living.intersection(wanted.values()) or time.monotonic() >= deadline:
                return list(self._coming), sorted(set(wanted.values()) - living)
            await anyio.sleep(ASK_SECS)
            if time.monotonic() >= claim.renew_at:
                await claim.renew()

    async def learn(self) -> None:
        """Read what the topics that came to us end with: so a gap can say the provider's numbers."""
        coming, self._coming = self._coming, {}
        for name, about in coming.items():
            if name not in self._outbox.earlier:
                continue
            topic = self._outbox.topic(name, str(about.get("kind", "")), str(about.get("provider", "")))
            if topic.before is not None:  # our spool reaches as far
                continue
            entries = await self._claim.link.call("XREVRANGE", name, "+", "-", "COUNT", TAIL)
            bodies = [fields[1] for _, fields in entries or ()]
            topic.before = next((body for body in bodies if number_after(body) is not None), None)

    async def hand_over(self, *, ask: bool = False) -> None:
        """Give those away of which nothing waits. `ask`: they are not fenced yet, only Redis knows what it has."""
        topics = self._outbox.topics
        free: dict[str, list[str]] = {}
        for name, to in self.leaving.items():
            topic = topics.get(name)
            if topic is None or not (topic.ids or topic.spilled or topic.parked):
                free.setdefault(to, []).append(name)
            elif ask and not topic.ids and topic.last_id:  # of an earlier run: it may be there already
                if order((await self._claim.written(name))[1]) >= order(topic.last_id):
                    free.setdefault(to, []).append(name)
        for to, names in free.items():
            await self._claim.give(names, to)
            for name in names:
                del self.leaving[name]
                if name in topics:
                    self._outbox.forget(topics[name])
