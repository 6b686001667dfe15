"""How much of everything a load takes, from measured costs: the sums behind bench/scaling.py. No clock, no chance.

`Inputs` are read from the benchmarks' own output, `Load` is what comes, `Bounds` what hosts and people can do, and a
`Plan` tells how full processes, threads, memories and networks are, and how many of them are needed.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from relay.config.structs import RedisConfig
from relay.shards import home
from relay.sink.slots import SLOTS, slot_of

RESULTS = Path(__file__).resolve().parent / "results"

Curve = tuple[tuple[float, float], ...]
"""Measured points, by a number such as topics."""


def at(curve: Curve, where: float) -> float:
    """Read between measured points, by logarithm; beyond the ends, the end."""
    for (left, low), (right, high) in zip(curve, curve[1:], strict=False):
        if where <= left:
            return low
        if where < right:
            return low + (high - low) * math.log(where / left) / math.log(right / left)
    return curve[-1][1]


def rising(points: Iterable[tuple[float, float]]) -> Curve:
    """More of it never costs less: the noise of a run taken out."""
    found: list[tuple[float, float]] = []
    for where, cost in sorted(points):
        found.append((where, max(cost, found[-1][1]) if found else cost))
    return tuple(found)


# -- what goes in ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Writing:
    """Microseconds of a server's thread: the first entry of a topic in a call, and each further one."""

    first: float
    further: float


@dataclass(frozen=True)
class Inputs:
    """Measured costs, in microseconds of CPU and bytes."""

    relay: Curve
    """A message in a relay process, by topics."""
    resident_mb: Curve
    """Memory of a relay process, by topics."""
    sharing: float
    """What several processes cost more, a message."""
    standing_by: float
    """Share of a message's cost that a standby has too: all but the append."""
    single: Writing
    cluster: Writing
    delivery: float
    """A message to a subscriber, among many in one write."""
    write: float
    """A write to a subscriber's socket."""
    look: float
    """A look at one topic that has nothing new."""
    read: Curve
    """An XREAD BLOCK that one entry wakes, by topics followed."""
    entry_read: float
    """An entry in a long reply."""
    replicating: float
    """What an attached replica adds to an entry."""
    bytes_in: float
    bytes_out: float
    bytes_replicated: float
    """Of a message on the wire: relay to Redis, Redis to a subscriber, primary to a replica."""
    entry_bytes: dict[str, float]
    """An entry in a stream, by kind."""
    body_bytes: float


def read_inputs(folder: Path = RESULTS) -> Inputs:
    """Take the costs from what the benchmarks have left. Raises: SystemExit where a benchmark has not run."""

    def load(name: str, command: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((folder / name).read_text())
        except FileNotFoundError:
            sys.exit(f"{folder / name} is missing; run: python bench/{command}")
        return found

    topics = load("topics.json", "bench.py topics")["rows"]
    one, two = (row for row in load("shards.json", "bench.py shards")["rows"] if row["of"] == "trade")
    stages = load("stages.json", "stages.py")["us_per_message"]
    server = load("server.json", "server.py")
    ours = {name: cost for name, cost in stages.items() if "waiting" not in name}
    appending = sum(cost for name, cost in ours.items() if name.startswith("append"))
    cost = {(row["shape"], row["subscribers"]): row["cpu_us_per_entry"] for row in server["appends"]}
    most = max(subscribers for _, subscribers in cost)
    wire = [row for row in server["appends"] if row["subscribers"] == most and "alone" not in row["shape"]]
    without, attached = sorted(server["replicas"], key=lambda row: row["replicas"])

    def writing(first: float, batched: float) -> Writing:
        further = (10 * batched - first) / 9  # ten entries a topic: one first and nine further ones
        return Writing(first, min(first, further))

    def delivery(shape: str) -> float:
        return float(cost[shape, most] - cost[shape, 0]) / most

    return Inputs(
        relay=rising((row["topics"], row["cpu_us_per_message"]) for row in topics),
        resident_mb=rising((row["topics"], row["memory_peak_mb"]) for row in topics),
        sharing=max(1.0, two["cpu_us_per_message"] / one["cpu_us_per_message"]),
        standing_by=1 - appending / sum(ours.values()),
        single=writing(cost["one an entry", 0], cost["batched", 0]),
        cluster=writing(cost["cluster, one an entry", 0], cost["cluster, batched", 0]),
        delivery=delivery("one an entry"),
        write=max(0.0, delivery("alone") - delivery("one an entry")),
        look=max(row["cpu_us_per_look"] for row in server["readers"]),
        read=rising((row["topics"], row["cpu_us_per_read"]) for row in server["readers"]),
        entry_read=max(row["cpu_us_per_entry_of_500"] for row in server["readers"]),
        replicating=max(0.0, attached["cpu_us_per_entry"] - without["cpu_us_per_entry"]),
        bytes_in=max(row["bytes_in_per_entry"] for row in wire),
        bytes_out=max(row["bytes_out_per_delivery"] for row in wire),
        bytes_replicated=attached["bytes_to_replica_per_entry"],
        entry_bytes={row["kind"]: row["bytes_per_entry"] for row in server["entries"]},
        body_bytes=server["entries"][0]["body_bytes"],
    )


@dataclass(frozen=True)
class Load:
    """What comes and who reads it."""

    messages: float = 5_000
    """A second, in the busiest second."""
    topics: int = 100
    consumers: int = 10
    follows: int = 100
    """Topics that each consumer follows."""
    zipf: float = 1.0
    """How unequal topics are: the n-th has 1/n^zipf of what the first one has; 0: all are alike."""

    def times(self, factor: float) -> "Load":
        """So many times the messages, over so many times the topics, for so many times the consumers."""
        return replace(
            self,
            messages=self.messages * factor,
            topics=max(1, round(self.topics * factor)),
            consumers=round(self.consumers * factor),
        )

    @property
    def fan_out(self) -> float:
        """Consumers of each topic."""
        return self.consumers * min(self.follows, self.topics) / self.topics

    def rates(self) -> list[float]:
        """Messages a second of each topic, the busiest first."""
        weights = [(number + 1) ** -self.zipf for number in range(self.topics)]
        total = sum(weights)
        return [self.messages * weight / total for weight in weights]


@dataclass(frozen=True)
class Bounds:
    """What is assumed of hosts, readers and operators."""

    headroom: float = 0.6
    """How full the fullest of anything may be."""
    hot: float = 0.25
    """A topic that takes more than this share of a process or node, headroom taken, is split (by venue, say)."""
    wait_ms: float = 2.0
    """How long a message may wait for others of its topic, to be written or read with them, where a thread is busy."""
    reads: float = 200.0
    """How often a second a busy reader by stream reads; in a cluster: looks at each of its topics."""
    node_gb: float = 16.0
    gbit: float = 10.0
    clients: int = 10_000
    """Redis' own default of `maxclients`."""
    length: int = RedisConfig().stream_length_max
    kind: str = "CoinAPI trades"


# -- dealing -----------------------------------------------------------------------------------------------------

HEAD = 300
"""So many of the busiest topics are dealt one by one; the others, small and many, are spread evenly."""
BUCKET = 50
"""Of the others those are reckoned as alike whose ranks differ by less than one in so many."""
COUNTS = (*range(1, 17), *(round(2 ** (step / 8)) for step in range(33, 121)))
"""Numbers of shards or nodes that are tried: above 16 in steps of a twelfth."""


@dataclass(frozen=True)
class Part:
    """A topic, or one of the parts into which a hot one was split."""

    name: str
    rate: float
    count: int = 1
    """More than one: so many topics of about this rate, spread evenly."""


def parts_of(rates: Sequence[float], most: float) -> list[Part]:
    """Split what is busier than `most` a second into equal parts."""
    found = []
    for number, rate in enumerate(rates):
        count = max(1, math.ceil(rate / most))
        name = f"trades.C{number:05d}-USDT"
        # as `trades.{venue}.{symbol}` would
        found += [Part(f"trades.V{venue}.{name[7:]}" if count > 1 else name, rate / count) for venue in range(count)]
    found.sort(key=lambda part: -part.rate)
    alike, begin = found[:HEAD], HEAD
    while begin < len(found):
        group = found[begin : begin + max(1, begin // BUCKET)]
        alike.append(Part("", sum(part.rate for part in group) / len(group), len(group)))
        begin += len(group)
    return alike


@lru_cache(100_000)
def shard_of(name: str, count: int) -> int:
    return home(name, count) - 1


def created(name: str, count: int) -> int:
    """The node of a cluster whose slots were given out in equal ranges, as `redis-cli --cluster create` does."""
    return slot_of(name) * count // SLOTS


def moved(parts: Sequence[Part], count: int) -> dict[str, int]:
    """Nodes by topic after an operator has moved busy slots: the busiest slot first, to the node with the least."""
    slots: dict[int, float] = {}
    for part in parts[:HEAD]:
        slots[slot_of(part.name)] = slots.get(slot_of(part.name), 0.0) + part.rate
    nodes = [(0.0, number) for number in range(count)]
    homes: dict[int, int] = {}
    for slot, rate in sorted(slots.items(), key=lambda item: -item[1]):
        had, homes[slot] = heappop(nodes)
        heappush(nodes, (had + rate, homes[slot]))
    return {part.name: homes[slot_of(part.name)] for part in parts[:HEAD]}


def dealt(
    parts: Sequence[Part], count: int, place: Callable[[str, int], int], cost: Callable[[float], float]
) -> list[float]:
    """Give what each of `count` places has to carry."""
    carried = [sum(cost(part.rate) * part.count for part in parts[HEAD:]) / count] * count
    for part in parts[:HEAD]:
        carried[place(part.name, count)] += cost(part.rate)
    return carried


def least(fits: Callable[[int], bool], mean: float, counts: Iterable[int] = COUNTS) -> int:
    """The smallest number of which all fit; fewer than the mean of them would need are not tried."""
    for count in counts:
        if count >= mean and fits(count):
            return count
    raise OverflowError("no number of processes or nodes that was tried carries this load")


# -- one plan ----------------------------------------------------------------------------------------------------


class Plan:
    """How much of everything a load takes, on so many shards and nodes. All pure; nothing is chosen here."""

    def __init__(self, inputs: Inputs, load: Load, bounds: Bounds) -> None:
        self.inputs, self.load, self.bounds = inputs, load, bounds
        rates = load.rates()
        self.hottest = rates[0]
        busy = inputs.relay[-1][1] * inputs.sharing / 1e6
        heard = (inputs.cluster.further + inputs.replicating + load.fan_out * inputs.delivery) / 1e6
        self.topic_max = bounds.headroom * bounds.hot / max(busy, heard)
        self.parts = parts_of(rates, self.topic_max)
        self.splits = max(1, math.ceil(self.hottest / self.topic_max))
        self.streams = sum(part.count for part in self.parts)
        self._moved: dict[int, dict[str, int]] = {}

    # relay

    def relay_us(self, shards: int) -> float:
        """CPU of a message on one of so many shards."""
        alone = at(self.inputs.relay, self.streams / shards)
        return alone * (self.inputs.sharing if shards > 1 else 1.0)

    def cores(self, shards: int) -> list[float]:
        """How busy the core of each shard is, 1 being all of it."""
        us = self.relay_us(shards) / 1e6
        return dealt(self.parts, shards, shard_of, lambda rate: rate * us)

    @cached_property
    def shards(self) -> int:
        """The number of them that is needed."""
        headroom = self.bounds.headroom
        # with how many topics a shard has, its cost a message falls: the least of it bounds the number from below
        mean = self.load.messages * self.inputs.relay[0][1] / 1e6 / headroom
        return least(lambda count: max(self.cores(count)) <= headroom, mean)

    # Redis

    def node_of(self, name: str, nodes: int) -> int:
        """The node of a topic, after busy slots were moved."""
        if nodes not in self._moved:
            self._moved[nodes] = moved(self.parts, nodes)
        return self._moved[nodes][name]

    def threads(
        self, nodes: int, via: str, shards: int, node_of: Callable[[str, int], int] | None = None
    ) -> list[float]:
        """How busy the thread of each node is, where so many shards write to it."""
        node_of = node_of or self.node_of
        inputs, load, fan_out = self.inputs, self.load, self.load.fan_out
        writing = inputs.single if nodes == 1 else inputs.cluster
        calls_max = 1000 / self.bounds.wait_ms

        def cost(rate: float) -> float:
            calls = min(rate, calls_max)
            appended = calls * writing.first + (rate - calls) * writing.further + rate * inputs.replicating
            if via == "channel":
                return appended + rate * fan_out * inputs.delivery
            looks = 0.0 if nodes == 1 else fan_out * self.bounds.reads * inputs.look
            return appended + rate * fan_out * inputs.entry_read + looks

        carried = dealt(self.parts, nodes, node_of, cost)
        # a shard's calls to a node are read and answered together: a read and a write, each like one to a subscriber
        written = dealt(self.parts, nodes, node_of, lambda rate: rate)
        rounds = [2 * inputs.write * min(rate, shards * calls_max) for rate in written]
        carried = [had + more for had, more in zip(carried, rounds, strict=True)]
        if via == "channel":
            # what reaches a subscriber within the time that messages may wait goes out in one write
            heard = dealt(self.parts, nodes, node_of, lambda rate: min(rate, calls_max) * fan_out)
            writes = load.consumers * calls_max
            carried = [had + min(more, writes) * inputs.write for had, more in zip(carried, heard, strict=True)]
        elif nodes == 1:
            reads = load.consumers * min(load.messages * fan_out / max(1, load.consumers), self.bounds.reads)
            carried[0] += reads * at(inputs.read, load.follows)
        return [us / 1e6 for us in carried]

    def sent_gbit(self, nodes: int) -> list[float]:
        """What each node sends, its replica included."""
        bits = 8e-9 * (self.load.fan_out * self.inputs.bytes_out + self.inputs.bytes_replicated)
        return dealt(self.parts, nodes, self.node_of, lambda rate: rate * bits)

    def memory_gb(self, nodes: int) -> list[float]:
        """Streams that are full."""
        each = self.bounds.length * self.inputs.entry_bytes[self.bounds.kind] / 1e9
        return dealt(self.parts, nodes, self.node_of, lambda _: each)

    def clients(self, nodes: int) -> float:
        """Connections of readers to a node: one for channels or reads each, where it has some of their topics."""
        return self.load.consumers * (1 - (1 - 1 / nodes) ** self.load.follows if nodes > 1 else 1)

    def shares(self, nodes: int, via: str, shards: int) -> dict[str, float]:
        """How near its bound the fullest node is, by resource."""
        return {
            f"Redis thread ({via})": max(self.threads(nodes, via, shards)) / self.bounds.headroom,
            "memory of streams": max(self.memory_gb(nodes)) / self.bounds.node_gb / self.bounds.headroom,
            "network of Redis": max(self.sent_gbit(nodes)) / self.bounds.gbit / self.bounds.headroom,
        }

    def nodes(self, via: str) -> int:
        """Primaries; a cluster has three at least."""
        if max(self.shares(1, via, self.shards).values()) <= 1:
            return 1
        counts = [count for count in COUNTS if count >= 3]
        return least(lambda count: max(self.shares(count, via, self.shards).values()) <= 1, 3, counts)

    # what breaks

    def strained(self, shards: int, nodes: int, via: str) -> list[tuple[float, str]]:
        """Resources of such a deployment under this load, the one farthest beyond its bound first; 1 is the bound."""
        topic_us = self.relay_us(shards) / 1e6
        found = self.shares(nodes, via, shards) | {
            "relay core": max(self.cores(shards)) / self.bounds.headroom,
            "hottest topic, in one relay core": self.hottest * topic_us / self.bounds.headroom,
            "connections of readers to a node": self.clients(nodes) / self.bounds.clients,
        }
        return sorted(((share, name) for name, share in found.items()), reverse=True)


# -- waiting -----------------------------------------------------------------------------------------------------


def wait_us(busy: float, service_us: float, burst: int = 1) -> float:
    """Mean wait for a server with fixed service times, where bursts of so many come at random (M/D/1 of bursts)."""
    if busy >= 1:
        return math.inf
    return burst * service_us * busy / (2 * (1 - busy)) + (burst - 1) * service_us / 2


def catch_up_secs(busy: float, away_secs: float) -> float:
    """How long what waited while something was away takes to drain beside what goes on coming."""
    return math.inf if busy >= 1 else away_secs * busy / (1 - busy)
