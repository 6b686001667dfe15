"""The simulator plays recordings, beside a small side's own answers."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from small_side import SIDES, frames, simulator, subscribed
from websockets.asyncio.client import connect

from relay.errors import JournalError
from relay.simulator.faults import Faults
from relay.simulator.playback import CONTROLS, Playback
from relay.simulator.server import Simulator

RECORDED = Path(__file__).parents[2] / "shared" / "frames"


def recording(tmp_path: Path, *lines: Mapping[str, Any]) -> Path:
    path = tmp_path / "frames.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


async def test_playback_serves_the_recording_and_the_sides_own_answers(tmp_path: Path) -> None:
    path = recording(
        tmp_path,
        {"dir": "out", "frame": "never"},
        {"dir": "in", "frame": '{"type":"subscriptions"}', "src": "rec"},
        {"dir": "in", "frame": "one", "src": "rec"},
        {"dir": "in", "frame": "made up", "src": "made"},
        {"dir": "in", "frame": "\0\u00ff", "opcode": "binary", "src": "rec"},
        {"dir": "in", "frame": '{"n": 7}', "src": "rec"},
    )
    play = {"coinbase": Playback(path, where={"src": "rec"})}
    async with simulator("coinbase", play=play) as running:
        async with connect(running.url("coinbase")) as client:
            await client.send('{"key":"k"}')
            with anyio.move_on_after(0.3):
                pytest.fail(f"came before the subscription: {await client.recv()!r}")
            await client.send('{"subscribe":1}')
            with anyio.fail_after(2):
                assert [await client.recv() for _ in range(3)] == ["one", b"\0\xff", '{"n": 7}']
        assert running.stats["coinbase"].sent == 3


async def test_playback_lets_the_sides_answers_through(tmp_path: Path) -> None:
    from relay.simulator.playback import Controls

    controls = Controls(
        lambda frame: isinstance(frame, dict) and ("auth" in frame or "ack" in frame),
        lambda frame: isinstance(frame, dict) and "beat" in frame,
    )
    path = recording(tmp_path, {"frame": '{"ack":0}'}, {"frame": "one"}, {"frame": "two"})
    async with simulator(play={"small": Playback(path, controls=controls)}) as running:
        async with subscribed(running) as client:
            found = await frames(client, lambda found: b"two" in found and b'{"beat":1}' in found)
            assert [f for f in found if f != b'{"beat":1}'] == [b'{"auth":true}', b'{"ack":1}', b"one", b"two"]


async def test_playback_spacing_rate_and_loop(tmp_path: Path) -> None:
    # the hour between the recordings is not waited out, and a step back of the clock is none
    times = [100.0, 100.2, 100.4, 3700.4, 50.0]
    path = recording(tmp_path, *({"frame": str(i), "t": t} for i, t in enumerate(times)))
    assert Playback(path).load("small").offsets == pytest.approx([0, 0.2, 0.4, 5.4, 5.4])
    assert Playback(path, speed=2).load("small").offsets == pytest.approx([0, 0.1, 0.2, 2.7, 2.7])
    assert Playback(path, rate=10).load("small").offsets == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert Playback(path, speed=0).load("small").offsets == []
    async with simulator(play={"small": Playback(path, speed=20, loop=True)}) as running:
        async with subscribed(running) as client:
            began = time.monotonic()
            found = await frames(client, lambda found: found.count(b"4") == 3)
            assert [f for f in found if f in b"01234"] == [str(i).encode() for i in range(5)] * 3
            assert 3 * 0.27 < time.monotonic() - began < 2.5


async def test_playback_of_a_large_recording_as_fast_as_possible_with_faults(tmp_path: Path) -> None:
    path = recording(tmp_path, *({"frame": f"frame {i}", "t": i} for i in range(3000)))
    async with simulator(play={"small": Playback(path, speed=0)}) as running:
        async with subscribed(running) as client:
            found = await frames(client, lambda found: b"frame 2999" in found)
            assert [f for f in found if f.startswith(b"frame")] == [f"frame {i}".encode() for i in range(3000)]
        running.set_faults(Faults(jump_every=2, drop_after=4))
        async with subscribed(running) as client:
            found = await frames(client, lambda found: False)
            assert [f for f in found if f.startswith(b"frame")] == [b"frame 0", b"frame 1", b"frame 3", b"frame 4"]


async def test_recorded_rest_replies_are_served(tmp_path: Path) -> None:
    path = recording(
        tmp_path,
        {"dir": "in", "frame": '{"A":1}', "note": "rec: REST reply of GET /api/depth?symbol=A&limit=1000"},
        {"dir": "in", "frame": '{"B":1}', "note": "rec: REST reply of GET /api/depth?symbol=B&limit=1000"},
        {"dir": "in", "frame": "one"},
    )
    async with simulator("rest", play={"rest": Playback(path)}) as running, httpx2.AsyncClient() as http:
        base = running.rest_url("rest")
        assert (await http.get(f"{base}/api/depth?symbol=B&limit=50")).json() == {"B": 1}
        assert (await http.get(f"{base}/api/depth?limit=1000&symbol=A")).json() == {"A": 1}
        assert "path" in (await http.get(f"{base}/api/depth?symbol=C", headers={"x-key": "k"})).json()
        assert running.recordings["rest"].frames == ["one"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no frame to play"),
        ("{\n", ":1: not JSON"),
        ('{"frame":"x"}\n[]\n', ":2: not a JSON object"),
        ('{"dir":"in"}\n', ":1: no frame"),
    ],
)
async def test_broken_recording_fails_at_the_start(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "frames.jsonl"
    path.write_text(text)
    with pytest.raises(JournalError, match=said):
        await Simulator(["small"], sides=SIDES, play={"small": Playback(path)}).start()
    with pytest.raises(JournalError, match="No such file"):
        await Simulator(["small"], sides=SIDES, play={"small": Playback(tmp_path / "none")}).start()


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recordings are not in ../shared/frames")
@pytest.mark.parametrize(
    ("provider", "answers", "count"), [("coinbase", 3, 2905), ("kraken", 18, 1551), ("binance", 0, 237)]
)
def test_recorded_acknowledgements_are_left_out(provider: str, answers: int, count: int) -> None:
    path = RECORDED / f"{provider}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    wanted = [line for line in lines if line["dir"] == "in" and line.get("src") == "rec"]
    out = [line for line in wanted if CONTROLS[provider].answer(json.loads(line["frame"]))]
    assert len(out) == answers
    found = Playback(path, where={"src": "rec"}).load(provider)
    assert len(found.frames) == count
    assert len(found.rest) == len(wanted) - answers - count


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recordings are not in ../shared/frames")
async def test_recorded_coinbase_session_reaches_the_client_whole_beside_the_sides_answer() -> None:
    from relay.simulator import SIDES as real

    play = {"coinbase": Playback(RECORDED / "coinbase.jsonl", speed=0, where={"src": "rec"})}
    async with Simulator(["coinbase"], play=play, sides=real) as running:
        recorded = [frame for frame in running.recordings["coinbase"].frames]
        async with connect(running.url("coinbase"), max_size=None) as client:
            subscribe = {"type": "subscribe", "product_ids": ["SKL-USD"], "channels": ["ticker", "matches"]}
            await client.send(json.dumps(subscribe))
            found: list[str | bytes] = []
            with anyio.fail_after(5):
                while len(found) < len(recorded) + 1:
                    found.append(await client.recv())
    answer = json.loads(found[0])
    assert answer["type"] == "subscriptions"
    assert [channel["product_ids"] for channel in answer["channels"]] == [["SKL-USD"], ["SKL-USD"]]
    assert found[1:] == recorded
