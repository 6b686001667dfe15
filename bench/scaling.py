"""What 10, 100 and 1,000 times today's load needs: `python bench/scaling.py [--messages 5000] [--steps 1,10,100] ...`.

A simulation on paper. Costs come from the benchmarks' own output in bench/results (`Inputs`), the load and what hosts
can do are options with defaults (`Load`, `Bounds`), everything else is computed: topics of unequal popularity are dealt
out by the relay's own functions, to shards by rendezvous hashing and to nodes by slot, and the smallest number is taken
of which the fullest process, node, memory and network card stay below the headroom. `--markdown` gives the table of
docs/scaling.md, `--write` puts it there.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from capacity import RESULTS, Bounds, Inputs, Load, Plan, at, catch_up_secs, created, read_inputs, wait_us

from relay.config.structs import SpoolConfig
from relay.providers import PROVIDERS
from relay.shards import CONNECTIONS_EACH, SHARDS_MAX

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
TOPICS_MAX = 5_000_000
"""More would take the simulation minutes and gigabytes."""
MARKS = ("<!-- begin of the generated {} -->", "<!-- end of the generated {} -->")

# -- the table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """What a load needs."""

    factor: float
    plan: Plan
    shards: int
    channel_nodes: int
    stream_nodes: int
    breaks: tuple[tuple[float, str], ...]
    """Of the step before, where it is put under this load."""

    def by_channel(self, place: Callable[[str, int], int] | None = None) -> list[float]:
        """How busy the nodes' threads are."""
        return self.plan.threads(self.channel_nodes, "channel", self.shards, place)

    def by_stream(self) -> list[float]:
        return self.plan.threads(self.stream_nodes, "stream", self.shards)


def steps(inputs: Inputs, load: Load, bounds: Bounds, factors: Sequence[float]) -> list[Step]:
    found: list[Step] = []
    before = (1, 1)
    for factor in factors:
        plan = Plan(inputs, load.times(factor), bounds)
        breaks = plan.strained(*before, "channel")
        found.append(Step(factor, plan, plan.shards, plan.nodes("channel"), plan.nodes("stream"), tuple(breaks)))
        before = found[-1].shards, found[-1].channel_nodes
    return found


def rows(found: Sequence[Step]) -> list[list[str]]:
    def line(name: str, text: Callable[[Step], str]) -> list[str]:
        return [name, *(text(step) for step in found)]

    def fullest(carried: list[float]) -> str:
        return f"{max(carried):.0%} / {sum(carried) / len(carried):.0%}"

    def spool_secs(step: Step) -> float:
        spool, inputs = SpoolConfig(), step.plan.inputs
        rate = max(step.plan.cores(step.shards)) / step.plan.relay_us(step.shards) * 1e6
        return min(spool.retention_secs, spool.bytes_max / (rate * inputs.body_bytes))

    def resident(step: Step) -> str:
        each = at(step.plan.inputs.resident_mb, step.plan.streams / step.shards)
        return size(each * (step.shards + (step.shards > 1)) * 1e6)

    def wait(step: Step) -> str:
        us, busy = step.plan.relay_us(step.shards), max(step.plan.cores(step.shards))
        return f"{wait_us(busy, us):.1f} us / {wait_us(busy, us, 1_000) / 1e3:.1f} ms"

    return [
        line("", lambda step: f"x {step.factor:,g}"),
        line("**load**", lambda step: ""),
        line("messages/s", lambda step: f"{step.plan.load.messages:,.0f}"),
        line("topics", lambda step: f"{step.plan.load.topics:,}"),
        line("consumers", lambda step: f"{step.plan.load.consumers:,}"),
        line("deliveries/s", lambda step: f"{step.plan.load.messages * step.plan.load.fan_out:,.0f}"),
        line("hottest topic, messages/s", lambda step: f"{step.plan.hottest:,.0f}"),
        line("parts it must be split in", lambda step: f"{step.plan.splits:,}"),
        line("**relay**", lambda step: ""),
        line("shards", lambda step: f"{step.shards:,}"),
        line("core, fullest / mean", lambda step: fullest(step.plan.cores(step.shards))),
        line("mean wait: single / bursts of 1,000", wait),
        line(
            "drained after 10 s of Redis away",
            lambda step: f"{catch_up_secs(max(step.plan.cores(step.shards)), 10):.1f} s",
        ),
        line("memory of the processes", resident),
        line("spool reaches back", lambda step: f"{spool_secs(step):,.0f} s"),
        line("with standby: processes", lambda step: f"{2 * step.shards:,}"),
        line("with standby: cores busy in all", lambda step: (
            f"{sum(step.plan.cores(step.shards)) * (1 + step.plan.inputs.standing_by):,.2f}"
        )),
        line("**Redis, read by channel**", lambda step: ""),
        line("primaries (as many replicas beside)", lambda step: f"{step.channel_nodes:,}"),
        line("thread, fullest / mean", lambda step: fullest(step.by_channel())),
        line("fullest, were no slot moved", lambda step: (
            f"{max(step.by_channel(created)):.0%}"
        )),
        line("sent by the fullest node", lambda step: speed(max(step.plan.sent_gbit(step.channel_nodes)))),
        line("connections of readers a node", lambda step: f"{step.plan.clients(step.channel_nodes):,.0f}"),
        line("**Redis, read by stream**", lambda step: ""),
        line("primaries (as many replicas beside) ", lambda step: f"{step.stream_nodes:,}"),
        line("thread, fullest / mean ", lambda step: fullest(step.by_stream())),
        line("**together**", lambda step: ""),
        line("memory of full streams", lambda step: size(sum(step.plan.memory_gb(1)) * 1e9)),
        line("relay to Redis", lambda step: speed(step.plan.load.messages * step.plan.inputs.bytes_in * 8e-9)),
        line("a copy in another region, a month", lambda step: (
            f"{step.plan.load.messages * step.plan.inputs.bytes_replicated * 86_400 * 30 / 1e12:,.1f} TB"
        )),
        line("Redis to consumers", lambda step: speed(
            step.plan.load.messages * step.plan.load.fan_out * step.plan.inputs.bytes_out * 8e-9
        )),
    ]  # fmt: skip


def breaking(found: Sequence[Step]) -> list[list[str]]:
    """What is beyond its bound first, where each step's load meets what the step before needed."""
    table = [["load", "meets", "and breaks, the worst first (times its bound)"]]
    shards, nodes = 1, 1
    for step in found:
        over = [f"{name} {share:.1f}" for share, name in step.breaks if share > 1]
        share, name = step.breaks[0]
        text = "; ".join(over) or f"nothing; nearest: {name} {share:.2f}"
        met = f"{shards:,} process{'es' * (shards > 1)}, {nodes:,} primar{'ies' if nodes > 1 else 'y'}"
        table.append([f"x {step.factor:,g}", met, text])
        shards, nodes = step.shards, step.channel_nodes
    return table


def size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def speed(gbit: float) -> str:
    return f"{gbit:,.1f} Gbit/s" if gbit >= 1 else f"{gbit * 1e3:,.0f} Mbit/s"


def costs(inputs: Inputs, load: Load, bounds: Bounds) -> list[list[str]]:
    """The measured costs, and what follows from them for one core, one entry and one node."""
    plan = Plan(inputs, load, bounds)
    idle = bounds.headroom * 1e6

    def consumers(via: str) -> str:
        """How many of today's consumers one node carries, until its thread has no headroom left."""

        def busy(count: int) -> float:
            grown = Plan(inputs, replace(load, consumers=count), bounds)
            return max(grown.threads(1, via, 1))

        low, high = 0, 1_000_000
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if busy(middle) <= bounds.headroom else (low, middle)
        return f"{low:,}"

    few, many = inputs.relay[0], inputs.relay[-1]
    some = min(inputs.read[-1][0], 100)
    return [
        ["cost", "", "from"],
        [f"relay, a message, {few[0]:,.0f} / 1,000 / {many[0]:,.0f} topics",
         f"{few[1]:.1f} / {at(inputs.relay, 1_000):.1f} / {many[1]:.1f} us of CPU", "topics.json"],
        ["relay, messages/s a core, all of it",
         f"{1e6 / few[1]:,.0f} / {1e6 / at(inputs.relay, 1_000):,.0f} / {1e6 / many[1]:,.0f}", "arithmetic"],
        ["the same a core at the headroom", f"{idle / few[1]:,.0f} / {idle / at(inputs.relay, 1_000):,.0f} / "
         f"{idle / many[1]:,.0f}", "arithmetic"],
        ["several processes cost more by", f"{inputs.sharing - 1:.1%}", "shards.json"],
        ["a standby's share of that cost", f"{inputs.standing_by:.0%}", "stages.json"],
        ["relay, memory of a process, by topics as above", f"{inputs.resident_mb[0][1]:.0f} / "
         f"{at(inputs.resident_mb, 1_000):.0f} / {inputs.resident_mb[-1][1]:.0f} MB", "topics.json"],
        ["Redis, first entry of a topic in a call / each further one",
         f"{inputs.single.first:.1f} / {inputs.single.further:.1f} us", "server.json, appends"],
        ["the same in a cluster, a call a topic",
         f"{inputs.cluster.first:.1f} / {inputs.cluster.further:.1f} us", "server.json, appends"],
        ["a replica adds", f"{inputs.replicating:.1f} us", "server.json, replicas"],
        ["pub/sub, each subscriber of a message", f"{inputs.delivery:.2f} us", "server.json, appends"],
        ["and each write to a subscriber's socket", f"{inputs.write:.1f} us", "server.json, appends"],
        [f"XREAD BLOCK woken by one entry, 1 / {some:,.0f} / {inputs.read[-1][0]:,.0f} topics",
         f"{inputs.read[0][1]:.0f} / {at(inputs.read, some):.0f} / {inputs.read[-1][1]:,.0f} us",
         "server.json, readers"],
        ["an entry in a long reply", f"{inputs.entry_read:.2f} us", "server.json, readers"],
        ["a look at a topic without news (cluster)", f"{inputs.look:.2f} us", "server.json, readers"],
        *([f"memory of an entry: {kind}", f"{count:,.0f} bytes", "server.json, entries"]
          for kind, count in inputs.entry_bytes.items()),
        ["on the wire: relay to Redis / to a subscriber / to a replica",
         f"{inputs.bytes_in:,.0f} / {inputs.bytes_out:,.0f} / {inputs.bytes_replicated:,.0f} bytes",
         "server.json, appends, replicas"],
        [f"consumers one node carries, each of {plan.load.follows:,} topics and "
         f"{plan.load.messages * min(1, plan.load.follows / plan.load.topics):,.0f} messages/s: by channel / by stream",
         f"{consumers('channel')} / {consumers('stream')}", "arithmetic"],
    ]  # fmt: skip


def kept_whole() -> list[tuple[str, int, int]]:
    """Providers that bound the connections of a key: title, connections, the most shards that share them."""
    return [
        (spec.title, most, max(1, most // CONNECTIONS_EACH))
        for spec in PROVIDERS.values()
        if (most := spec.limits.connections_max) is not None
    ]


def as_text(table: list[list[str]]) -> str:
    cells = [[cell.strip().replace("**", "") for cell in line] for line in table]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in cells
    )


def as_markdown(table: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.strip() for cell in line) + " |" for line in table]
    lines.insert(1, "|---" + "|--:" * (len(table[0]) - 1) + "|")
    return "\n".join(lines)


def embedded(page: str, tables: dict[str, str]) -> str:
    """Put each table between its two marks."""
    for name, table in tables.items():
        begin, end = (mark.format(name) for mark in MARKS)
        head, _, rest = page.partition(begin)
        old, found, tail = rest.partition(end)
        if not found:
            raise ValueError(f"the page has no place for the {name}: {begin} and {end}")
        page = f"{head}{begin}\n\n{table}\n\n{end}{tail}"
    return page


FACTORS = (1.0, 10.0, 100.0, 1_000.0)


def tables(inputs: Inputs, load: Load, bounds: Bounds, factors: Sequence[float]) -> dict[str, list[list[str]]]:
    found = steps(inputs, load, bounds, factors)
    return {"costs": costs(inputs, load, bounds), "plan": rows(found), "breaking": breaking(found)}


def page(current: str, folder: Path = RESULTS) -> str:
    """The page with its tables made anew, for the default load."""
    made = tables(read_inputs(folder), Load(), Bounds(), FACTORS)
    return embedded(current, {name: as_markdown(table) for name, table in made.items()})


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    load, bounds = Load(), Bounds()
    whole = parser.add_argument
    whole("--messages", type=float, default=load.messages, help="a second, in the busiest second (%(default)s)")
    whole("--topics", type=int, default=load.topics, help="(%(default)s)")
    whole("--consumers", type=int, default=load.consumers, help="(%(default)s)")
    whole("--follows", type=int, default=load.follows, help="topics that each consumer follows (%(default)s)")
    whole("--zipf", type=float, default=load.zipf, help="how unequal topics are; 0: alike (%(default)s)")
    whole("--steps", default="1,10,100,1000", help="how many times that load (%(default)s)")
    whole("--headroom", type=float, default=bounds.headroom, help="how full the fullest may be (%(default)s)")
    whole("--wait-ms", type=float, default=bounds.wait_ms, help="how long a message may wait for others (%(default)s)")
    whole("--node-gb", type=float, default=bounds.node_gb, help="memory of a node (%(default)s)")
    whole("--gbit", type=float, default=bounds.gbit, help="network of a node (%(default)s)")
    whole("--length", type=int, default=bounds.length, help="entries kept in a stream (%(default)s)")
    whole("--kind", default=bounds.kind, help="of messages, as bench/results/server.json calls them (%(default)s)")
    whole("--results", type=Path, default=RESULTS, help="folder of the benchmarks' output")
    whole("--markdown", action="store_true", help="tables as docs/scaling.md has them")
    whole("--write", action="store_true", help="put them into docs/scaling.md (the default load)")
    found = parser.parse_args(args)
    if found.write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), found.results), encoding="utf-8")
        return
    inputs = read_inputs(found.results)
    if found.kind not in inputs.entry_bytes:
        parser.error(f"--kind is one of: {', '.join(inputs.entry_bytes)}")
    try:
        factors = sorted(float(text) for text in found.steps.split(","))
    except ValueError:
        parser.error("--steps takes numbers with commas between: 1,10,100")
    for name, least_value in {"messages": 1, "topics": 1, "consumers": 0, "follows": 1, "zipf": 0, "wait_ms": 0.01,
                              "node_gb": 0.01, "gbit": 0.001, "length": 1}.items():  # fmt: skip
        if getattr(found, name) < least_value:
            parser.error(f"--{name.replace('_', '-')} is at least {least_value}")
    if not 0 < found.headroom <= 1 or min(factors) <= 0:
        parser.error("--headroom lies between 0 and 1, steps above 0")
    if found.topics * max(factors) > TOPICS_MAX:
        parser.error(f"at most {TOPICS_MAX:,} topics at the last step")
    load = Load(found.messages, found.topics, found.consumers, found.follows, found.zipf)
    bounds = replace(bounds, headroom=found.headroom, wait_ms=found.wait_ms, node_gb=found.node_gb, gbit=found.gbit,
                     length=found.length, kind=found.kind)  # fmt: skip
    try:
        made = tables(inputs, load, bounds, factors)
    except OverflowError as error:
        sys.exit(f"{error}; a smaller load, larger nodes or less headroom may do")
    draw = as_markdown if found.markdown else as_text
    print("\n\n".join(draw(table) for table in made.values()))
    if not found.markdown:
        print()
        for title, most, shards in kept_whole():
            print(f"{title}: {most} connection{'s' * (most > 1)} with one key, so {shards} shard has all of it")
        if (most_shards := steps(inputs, load, bounds, factors[-1:])[0].shards) > SHARDS_MAX:
            relays = math.ceil(most_shards / SHARDS_MAX)
            print(f"{most_shards} shards: more than one relay has ({SHARDS_MAX}), so {relays} of different names")


if __name__ == "__main__":
    main()
