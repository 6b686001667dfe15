"""docs/scaling.md holds what bench/scaling.py makes of the benchmarks' output, and the simulation is sane."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relay.shards import home
from relay.sink.slots import slot_of

BENCH = Path(__file__).resolve().parents[1] / "bench"
PAGE = BENCH.parent / "docs" / "scaling.md"


@pytest.fixture(scope="module")
def scaling() -> Any:
    sys.path.insert(0, str(BENCH))
    try:
        import capacity
        import scaling

        return SimpleNamespace(**vars(capacity) | vars(scaling))
    finally:
        sys.path.remove(str(BENCH))


@pytest.fixture(scope="module")
def inputs(scaling: Any) -> Any:
    return scaling.read_inputs()


def test_page_has_the_tables_of_the_committed_results(scaling: Any) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert scaling.page(text) == text, "run: python bench/scaling.py --write"


def test_inputs_come_from_the_results(scaling: Any, tmp_path: Path) -> None:
    for file in (BENCH / "results").glob("*.json"):
        shutil.copy(file, tmp_path)
    before = scaling.read_inputs(tmp_path)
    changed = {
        "topics.json": lambda found: [row.update(cpu_us_per_message=50.0) for row in found["rows"]],
        "shards.json": lambda found: found["rows"][1].update(cpu_us_per_message=99.0),
        "stages.json": lambda found: found["us_per_message"].update({"append (hiredis, redis-py)": 0.0}),
        "server.json": lambda found: [row.update(bytes_per_entry=1.0) for row in found["entries"]],
    }
    for name, change in changed.items():
        found = json.loads((tmp_path / name).read_text())
        change(found)
        (tmp_path / name).write_text(json.dumps(found))
    after = scaling.read_inputs(tmp_path)
    assert before.relay != after.relay and scaling.at(after.relay, 77) == 50.0
    assert before.sharing < after.sharing and before.standing_by < after.standing_by == 1.0
    assert set(before.entry_bytes) == set(after.entry_bytes) and set(after.entry_bytes.values()) == {1.0}
    made = [scaling.tables(found, scaling.Load(), scaling.Bounds(), [1.0]) for found in (before, after)]
    assert made[0]["costs"] != made[1]["costs"] and made[0]["plan"] != made[1]["plan"]
    (tmp_path / "server.json").unlink()
    with pytest.raises(SystemExit, match=r"server\.json is missing; run: python bench/server\.py"):
        scaling.read_inputs(tmp_path)


def test_costs_are_of_the_right_size(inputs: Any) -> None:
    """A fit gone wrong would give costs of nothing or less."""
    assert 0.5 < inputs.single.further <= inputs.single.first and 0.5 < inputs.cluster.further <= inputs.cluster.first
    assert inputs.delivery > 0.05 and inputs.write > 0.2 and inputs.look > 0.05 and inputs.entry_read > 0.05
    assert inputs.bytes_in > inputs.body_bytes < inputs.bytes_out < inputs.bytes_replicated
    assert all(count > inputs.body_bytes * 0.8 for count in inputs.entry_bytes.values())


@pytest.mark.parametrize("via", ["channel", "stream"])
def test_more_never_needs_less(scaling: Any, inputs: Any, via: str) -> None:
    base, bounds = scaling.Load(), scaling.Bounds()

    def needs(load: Any, bounds: Any = bounds) -> tuple[int, int]:
        plan = scaling.Plan(inputs, load, bounds)
        return plan.shards, plan.nodes(via)

    def rise(found: list[tuple[int, int]]) -> bool:
        return all(a <= c and b <= d for (a, b), (c, d) in zip(found, found[1:], strict=False))

    grown = [needs(base.times(factor)) for factor in (1, 10, 30, 100)]
    assert rise(grown) and grown[0] < grown[-1], grown
    consumers = [needs(replace(base.times(10), consumers=count)) for count in (0, 10, 100, 1_000)]
    assert rise(consumers) and len({shards for shards, _ in consumers}) == 1 < len(set(consumers)), consumers
    tighter = [needs(base.times(20), replace(bounds, headroom=headroom)) for headroom in (0.9, 0.6, 0.3)]
    assert rise(tighter) and tighter[0] < tighter[-1], tighter
    longer = [needs(base.times(10), replace(bounds, length=length)) for length in (10_000, 200_000)]
    assert rise(longer) and longer[0] < longer[-1], longer


def test_what_is_chosen_fits_and_one_less_does_not(scaling: Any, inputs: Any) -> None:
    bounds = scaling.Bounds()
    for factor in (1, 10, 100):
        plan = scaling.Plan(inputs, scaling.Load().times(factor), bounds)
        assert max(plan.cores(plan.shards)) <= bounds.headroom
        if plan.shards > 1:
            assert max(plan.cores(plan.shards - 1)) > bounds.headroom
        nodes = plan.nodes("channel")
        assert max(plan.shares(nodes, "channel", plan.shards).values()) <= 1


def test_nothing_is_lost_in_dealing(scaling: Any, inputs: Any) -> None:
    plan = scaling.Plan(inputs, scaling.Load().times(200), scaling.Bounds())
    assert plan.splits > 1 and sum(part.rate * part.count for part in plan.parts) == pytest.approx(1_000_000)
    for place in (scaling.shard_of, scaling.created, plan.node_of):
        assert sum(scaling.dealt(plan.parts, 13, place, lambda rate: rate)) == pytest.approx(1_000_000)


def test_topics_lie_where_the_relay_and_redis_put_them(scaling: Any) -> None:
    loads = [0.0] * 7
    parts = scaling.parts_of(scaling.Load(zipf=1.2).rates(), 1e9)
    for part in parts:
        loads[home(part.name, 7) - 1] += part.rate
    assert scaling.dealt(parts, 7, scaling.shard_of, lambda rate: rate) == pytest.approx(loads)
    assert [scaling.created(part.name, 3) for part in parts] == [slot_of(part.name) * 3 // 16_384 for part in parts]
    homes = scaling.moved(parts, 3)
    by_slot: dict[int, set[int]] = {}
    for part in parts:
        by_slot.setdefault(slot_of(part.name), set()).add(homes[part.name])
    assert all(len(nodes) == 1 for nodes in by_slot.values()) and set(homes.values()) == {0, 1, 2}


def test_waiting(scaling: Any) -> None:
    """Known values of M/D/1: half the service time at 50 %, none when idle, without end when full."""
    assert scaling.wait_us(0.5, 10.0) == pytest.approx(5.0)
    assert scaling.wait_us(0.0, 10.0) == 0.0 and scaling.wait_us(1.0, 10.0) == float("inf")
    assert scaling.wait_us(0.0, 10.0, 3) == pytest.approx(10.0)  # the second waits 10, the third 20
    assert scaling.catch_up_secs(0.6, 10) == pytest.approx(15.0)


@pytest.mark.fault
def test_command(scaling: Any, capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main(["--messages", "20000", "--steps", "1,2"])
    text = capsys.readouterr().out
    assert "20,000" in text and "40,000" in text and "CoinAPI: 1 connection with one key" in text
    scaling.main(["--steps", "1", "--markdown"])
    assert "|---|--:|" in capsys.readouterr().out
    for wrong in (
        ["--kind", "nonsense"],
        ["--steps", "x"],
        ["--headroom", "0"],
        ["--topics", "0"],
        ["--messages", "0"],
    ):
        with pytest.raises(SystemExit):
            scaling.main(wrong)
        assert wrong[0] in capsys.readouterr().err
    with pytest.raises(SystemExit, match="carries this load"):
        scaling.main(["--steps", "1", "--gbit", "0.001"])
    with pytest.raises(SystemExit):
        scaling.main(["--steps", "1e9"])
    assert "at most 5,000,000 topics" in capsys.readouterr().err


@pytest.mark.fault
def test_command_runs_by_itself(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / "scaling.py"), "--steps", "1"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Redis, read by channel" in done.stdout, done.stderr
