"""`relay sim`: its options, and the command itself."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_side import SIDES, frames, numbers, simulator
from websockets.asyncio.client import connect

from relay.cli import sim
from relay.simulator.faults import Faults


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.simulator.SIDES", SIDES)


def test_every_fault_is_a_flag() -> None:
    flags = {parameter.name for parameter in sim.command.params}
    wanted = {item.name for item in dataclasses.fields(Faults)} - {"connections"} | {"fault_connections"}
    assert wanted <= flags


@pytest.mark.usefixtures("sides")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["smal"], "Did you mean 'small'?"),
        (["small", "--play", "othr=x.jsonl"], "Did you mean 'other'?"),
        (["small", "--play", "other=x.jsonl"], "not among the providers"),
        (["--play", "what.jsonl"], "say which provider"),
        (["--play", "small.jsonl", "--play", "small=b.jsonl"], "twice"),
        (["--loop"], "need --play"),
        (["--where", "src"], "LABEL=VALUE"),
        (["--close-after", "5:x"], "not N or N:CODE"),
        (["--close-after", "5:1006"], "not a close code"),
        (["--refuse-upgrade", "200"], "300<=x<=599"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(sim.command, arguments)
    assert (result.exit_code, said in result.output) == (2, True), result.output


@pytest.mark.usefixtures("sides")
def test_unreadable_recording_exits_1() -> None:
    result = CliRunner().invoke(sim.command, ["small", "--port", "0", "--play", "/nowhere.jsonl"])
    assert result.exit_code == 1
    assert result.output == "relay: /nowhere.jsonl: No such file or directory\n"


def _started(*arguments: str) -> subprocess.Popen[str]:
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import small_side, relay.simulator\n"
        "relay.simulator.SIDES = small_side.SIDES\n"
        "from relay.cli.sim import command; command(prog_name='relay sim')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.fault
async def test_command_serves_until_a_signal_and_exits_0(number: signal.Signals) -> None:
    with _started("rest", "--port", "0", "--json", "--drop-after", "3", "--rate", "0") as process:
        assert process.stdout is not None
        addresses = json.loads(process.stdout.readline())["providers"]["rest"]
        assert addresses["rest_url"].startswith("http://127.0.0.1:")
        async with connect(addresses["url"]) as client:
            await client.send('{"key":"k"}')
            await client.send('{"subscribe":1}')
            assert numbers(await frames(client, lambda found: False)) == [1, 2, 3]
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "")
    assert err == "rest: 1 connects, 3 data messages, drop_after 1\n"


@pytest.mark.fault
async def test_command_prints_yaml_that_points_at_it_and_names_a_taken_port() -> None:
    async with simulator() as running:
        with _started("small", "--port", str(running.port)) as process:
            out, err = process.communicate(timeout=10)
        assert process.returncode == 1
        assert err.startswith(f"relay: cannot listen on port {running.port}: ")
    with _started("rest", "other", "--port", "0") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(7)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    import yaml

    found = yaml.safe_load("".join(lines))["providers"]
    assert found["rest"]["url"].endswith("/rest") and found["rest"]["rest_url"].endswith("/rest")
    assert list(found["other"]) == ["url"]
