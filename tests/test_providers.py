"""Every frames file through its provider. `pytest tests/test_providers.py --update` rewrites `out` and `send`.

The format of a frames file, a case a line, in order. Each line has `note` and `source`. `options` (needed on the
first line) begins a new session with new `shared` (`"keep_shared": true`: with the old one), carried by the planned
connection named `connection` (else by one that has all subscriptions). `do` says which method is called: `receive`
(default; `frame` or `hex`, `binary`), `opened`, `tick`, `closed`, `subscribe` and `unsubscribe` (`subscriptions`),
`replied` (`reply`), or `nothing` (the line only begins a session). `t` is the time in ns. `out` holds the exact
outputs (rejects without `detail` and `frame`), `send` what went out.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay import codec
from relay.errors import SessionError
from relay.model import CHANNEL_OF, Header, Reject, Status
from relay.providers import PROVIDERS
from relay.providers.base import Frame, Reply, Request, Seen, Send, Subscription

FRAMES = Path(__file__).parent / "frames"
START_NS = 1_772_359_200_000_000_000
STAMPED = ("ts_recv", "run", "seq", "origin")
"""What the relay stamps; a provider never sets it."""


def test_every_provider_has_a_frames_file() -> None:
    assert {path.stem for path in FRAMES.glob("*.jsonl")} == set(PROVIDERS)


class Player:
    """Plays the lines of one frames file, one session at a time."""

    def __init__(self, name: str) -> None:
        self.spec = PROVIDERS[name]
        self.now_ns = START_NS
        self.session: Any = None
        self.shared: Any = None

    def play(self, case: dict[str, Any]) -> tuple[list[Any], list[Any]]:
        """Give what one line leads to: outputs and sends, as they stand in the file."""
        self.now_ns = case.get("t", self.now_ns)
        if "options" in case:
            self._begin(case)
        out: list[Any] = []
        try:
            out += [self._output(one) for one in self._call(case)]
        except SessionError as error:
            out.append({"session_ended": error.action, "code": error.code, "text": error.text})
        return out, [self._sent(one) for one in self.session.to_send()]

    def _begin(self, case: dict[str, Any]) -> None:
        options = msgspec.convert(case["options"], self.spec.options)
        subscribed = tuple(self.spec.subscribed(options))
        if "connection" in case:
            planned = {plan.label: plan.subscriptions for plan in self.spec.plan(options, subscribed)}
            subscribed = planned[case["connection"]]
        if self.shared is None or not case.get("keep_shared"):
            self.shared = self.spec.shared(options, "main")
        self.session = self.spec.session(options, subscribed, self.shared)

    def _call(self, case: dict[str, Any]) -> Any:
        session, now_ns = self.session, self.now_ns
        do = case.get("do", "receive")
        if do == "receive":
            data = bytes.fromhex(case["hex"]) if "hex" in case else case["frame"].encode("utf-8", "surrogatepass")
            return session.receive(Frame(now_ns, data, bool(case.get("binary"))))
        if do in ("opened", "tick", "closed"):
            return getattr(session, do)(now_ns)
        if do in ("subscribe", "unsubscribe"):
            return getattr(session, do)([Subscription(*one) for one in case["subscriptions"]], now_ns)
        if do == "replied":
            reply = {**case["reply"], "body": case["reply"].get("body", "").encode()}
            return session.replied(Reply(**reply), now_ns)
        assert do == "nothing", f"no such thing to do: {do}"
        return ()

    def _output(self, output: Any) -> Any:
        if isinstance(output, Seen):
            return {"seen": list(output)}
        assert isinstance(output, Header), output
        document = json.loads(codec.encode(output))
        assert codec.decode(codec.encode(output)) == output
        assert not {"provider", *STAMPED} & {name for name in document if name != "ts_recv"}, document
        assert document.pop("ts_recv", 0) == 0
        if isinstance(output, Reject):
            # both depend on the libraries' wording, which changes with their versions
            document.pop("frame", None)
            document.pop("detail", None)
        elif not isinstance(output, Status):
            assert CHANNEL_OF[type(output)] in self.spec.channels, document
            if CHANNEL_OF[type(output)] not in self.spec.account_channels:
                assert output.symbol and output.raw_symbol, document
        return document

    def _sent(self, sent: Send | Request) -> Any:
        if isinstance(sent, Request):
            return {"request": sent.tag, "method": sent.method, "url": sent.url}
        if isinstance(sent.data, bytes):
            return {"hex": sent.data.hex()}
        try:
            return json.loads(sent.data)
        except ValueError:
            return sent.data


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FRAMES / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize("name", PROVIDERS)
def test_frames_give_exactly_what_is_written(name: str, request: pytest.FixtureRequest) -> None:
    cases = read(name)
    assert cases and "options" in cases[0], "the first line names the options"
    player = Player(name)
    wrong: list[str] = []
    for number, case in enumerate(cases, 1):
        assert case.get("note") and case.get("source"), f"{name}.jsonl:{number}: note and source"
        try:
            out, send = player.play(case)
        except Exception as error:
            error.add_note(f"{name}.jsonl:{number}: {case['note']}")
            raise
        if request.config.getoption("--update"):
            case["out"] = out
            case.pop("send", None)
            if send:
                case["send"] = send
            continue
        for one in case.get("out", []):
            if one.get("type") == "reject":
                one.pop("detail", None)
        for what, got in (("out", out), ("send", send)):
            if got != case.get(what, []):
                wrong.append(
                    f"{name}.jsonl:{number} ({case['note']}): {what}\n"
                    f"  expected {json.dumps(case.get(what, []))}\n  got      {json.dumps(got)}"
                )
    if request.config.getoption("--update"):
        text = "".join(json.dumps(case, ensure_ascii=False) + "\n" for case in cases)
        (FRAMES / f"{name}.jsonl").write_text(text, encoding="utf-8")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_way_of_being_called_is_shown(name: str) -> None:
    """A frames file covers the opening, rejects, an ended session and every channel that the provider declares."""
    cases = read(name)
    outs = [one for case in cases for one in case["out"]]
    shown = {case.get("do", "receive") for case in cases}
    assert {"opened", "receive", "tick"} <= shown
    assert any(one.get("type") == "reject" for one in outs)
    assert any("session_ended" in one for one in outs)
    kinds = {str(kind.__struct_config__.tag): channel for kind, channel in CHANNEL_OF.items()}
    assert {kinds[one["type"]] for one in outs if one.get("type") in kinds} == set(PROVIDERS[name].channels)


@pytest.mark.parametrize("name", PROVIDERS)
def test_random_bytes_are_rejected_and_never_raise(name: str) -> None:
    """No frame, however broken, ends a session by anything but a SessionError."""
    cases = read(name)
    player = Player(name)
    player.play({"options": cases[0]["options"], "do": "opened"})
    frames = [case["frame"].encode("utf-8", "surrogatepass") for case in cases if "frame" in case]
    broken: list[bytes] = [b"", b" ", b"null", b"[]", b"7", b'"x"', b"{}", b"\x00", b"\xff\xfe", b"[" * 5000]
    for frame in frames:
        broken += [frame[: len(frame) // 2], frame + b"\x00", frame.replace(b":", b":{", 1), frame.replace(b'"', b"")]
    for data in broken:
        for binary in (False, True):
            try:
                out = player.session.receive(Frame(START_NS, data, binary))
            except SessionError:
                player.play({"options": cases[0]["options"], "do": "opened"})
                continue
            assert all(isinstance(one, Header | Seen) for one in out)
