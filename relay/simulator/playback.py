"""Frames files and journals as a source: recorded frames are served where the simulator would make some up.

A frames file is JSON lines with `dir`, `frame` and, where known, `opcode` (`binary`), `t` (seconds) and labels of any
name (`src`, `conn`, `scenario`). Only `dir: in` is served; of a journal, the frames of providers of that type, with the
labels `conn` (`coinapi/1`), `provider` and `run`. Login and acknowledgements come from the provider's side,
because the recorded ones answer another client's requests: frames that `Controls.answer` takes are left out of the
recording, and everything else that the side would send is withheld while the recording plays.
"""

import json
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from relay import records
from relay.errors import JournalError
from relay.journal import Run, is_journal, read_records, runs_of
from relay.simulator.base import Answer, Step

GAP_SECS_MAX = 5.0
"""The longest recorded silence that is waited out: two recordings in one file may lie years apart."""
SETTLE_SECS = 0.05
"""How long the client must have sent nothing before the recording starts: several subscribe messages come in a row."""
_REST_NOTE = "rec: REST"
_log = logging.getLogger("relay.simulator")


Test = Callable[[Any], bool]
"""Tells something of one frame, decoded where it is JSON."""


def named(name: str, *values: str) -> Test:
    """Make a test: an object whose member `name` is one of these texts."""

    def test(frame: Any) -> bool:
        value = frame.get(name) if isinstance(frame, dict) else None
        return isinstance(value, str) and value in values

    return test


def having(*names: str) -> Test:
    """Make a test: an object with one of these members."""
    return lambda frame: isinstance(frame, dict) and any(name in frame for name in names)


def either(*tests: Test) -> Test:
    """Make a test: one of these."""
    return lambda frame: any(test(frame) for test in tests)


def never(frame: Any) -> bool:
    return False


class Controls(NamedTuple):
    """How to tell a provider's frames about the session from its data."""

    answer: Test
    """Logins, acknowledgements, refusals: made by the side, never from the recording."""
    keepalive: Test = never
    """Heartbeats: from the recording while it plays, from the side before and after."""


def _aries_answer(frame: Any) -> bool:
    """Everything but `action: update` and `snapshot` inside the payload is about the session."""
    payload = frame.get("payload") if isinstance(frame, dict) else None
    return isinstance(payload, dict) and payload.get("action") not in ("update", "snapshot")


CONTROLS: Mapping[str, Controls] = {
    "aries": Controls(_aries_answer, named("type", "ping", "pong")),
    "binance": Controls(either(having("result", "error"), named("e", "serverShutdown"))),
    "coinapi": Controls(named("type", "error", "reconnect"), named("type", "heartbeat", "hearbeat")),
    "coinbase": Controls(named("type", "subscriptions", "error")),
    "etoro": Controls(
        either(having("success", "operation"), named("type", "subscribed")), lambda frame: frame in ("\0", b"\0")
    ),
    "kraken": Controls(either(having("method"), named("channel", "status")), named("channel", "heartbeat")),
    "tickatlas": Controls(
        named("type", "authenticated", "subscribed", "unsubscribed", "error"), named("type", "heartbeat", "pong")
    ),
}
"""By provider. A provider that is not listed: every recorded frame is served; what the side answers
counts as a heartbeat."""
UNLISTED = Controls(never, lambda frame: True)


@dataclass(frozen=True)
class Playback:
    """One frames file or journal and how to play it, from its first frame to each connection that has subscribed.

    `speed`: recorded spacing divided by this; 0: as fast as the client reads. `rate`: frames a second in place of the
    recorded spacing; 0: not used. `where`: labels that a line must have (`{"src": "rec"}`). `loop`: begin again at the
    end. A file without times plays as fast as the client reads, unless `rate` is set.
    """

    path: str | Path
    speed: float = 1.0
    rate: float = 0.0
    where: Mapping[str, str] = field(default_factory=dict)
    loop: bool = False
    controls: Controls | None = None
    """None: those of the provider in CONTROLS."""

    def __post_init__(self) -> None:
        if self.speed < 0 or self.rate < 0:
            raise ValueError("speed and rate of a playback must not be negative")

    def load(self, provider: str) -> "Recording":
        """Read the whole file.

        Raises: JournalError where the file cannot be read, a line is not a frame, or no frame is left to serve.
        """
        controls = self.controls or CONTROLS.get(provider, UNLISTED)
        frames: list[str | bytes] = []
        offsets: list[float] = []
        rest: dict[str, bytes] = {}
        at, last, timed = 0.0, None, False
        journal = is_journal(Path(self.path))
        for number, line in self._journal(provider) if journal else self._lines():
            if line.get("dir", "in") != "in" or any(str(line.get(k)) != v for k, v in self.where.items()):
                continue
            text = line.get("frame")
            if not isinstance(text, str):
                raise JournalError(f"{self.path}:{number}: no frame in this line")
            note = line.get("note", "")
            if note.startswith(_REST_NOTE):
                rest[note.rpartition(" ")[2]] = text.encode()
                continue
            data: str | bytes = text.encode("latin-1", "replace") if line.get("opcode") == "binary" else text
            if controls.answer(decoded(data)):
                continue
            if isinstance(t := line.get("t"), (int, float)):
                at += 0.0 if last is None else min(max(t - last, 0.0), GAP_SECS_MAX)
                last, timed = t, True
            frames.append(data)
            offsets.append(at)
        if not frames:
            raise JournalError(f"{self.path}: no frame to play{f' where {dict(self.where)}' if self.where else ''}")
        if self.rate:
            offsets = [i / self.rate for i in range(len(frames))]
        elif self.speed and timed:
            offsets = [at / self.speed for at in offsets]
        else:
            offsets = []
        # a round of a loop is followed by one more spacing, so that its last frame does not meet the next first
        round_secs = offsets[-1] + (offsets[-1] / len(frames)) if offsets else 0.0
        return Recording(frames, offsets, round_secs, rest, controls, self.loop)

    def _journal(self, provider: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """The frames of a journal as lines of a frames file; what is damaged is logged and left out."""

        def tell(path: Path, text: str) -> None:
            _log.warning("recording damaged file=%s what=%s", path, text)

        number = 0
        for run in runs_of([Path(self.path)], tell):
            for line in _recorded(run, provider, tell):
                number += 1
                yield number, {**line, "run": str(run.run)}

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            with open(self.path, encoding="utf-8") as file:
                for number, text in enumerate(file, 1):
                    if not text.strip():
                        continue
                    try:
                        line = json.loads(text)
                    except ValueError as error:
                        raise JournalError(f"{self.path}:{number}: not JSON: {error}") from error
                    if not isinstance(line, dict):
                        raise JournalError(f"{self.path}:{number}: not a JSON object")
                    yield number, line
        except (OSError, UnicodeDecodeError) as error:
            raise JournalError(f"{self.path}: {getattr(error, 'strerror', None) or error}") from error


def _recorded(run: Run, provider: str, tell: Callable[[Path, str], None]) -> Iterator[dict[str, Any]]:
    names = {n for file in run.files for n, section in file.header.providers.items() if section.type == provider}
    asked: dict[tuple[str, str], str] = {}
    for file in run.files:
        for record in read_records(file.path, tell):
            name = record.conn.partition("/")[0]
            if name not in names:
                continue
            if record.do == "in":
                frame = records.frame_of(record, 0)
                t = record.t / 1e9
                line: dict[str, Any] = {"conn": record.conn, "provider": name, "t": t}
                if frame.binary:
                    yield {**line, "opcode": "binary", "frame": frame.data.decode("latin-1")}
                else:
                    yield {**line, "frame": frame.data.decode("utf-8", "replace")}
            elif record.do == "out":
                sent = records.data_of(record, dict)
                if "tag" in sent:
                    parts = urlsplit(sent["url"])
                    # recorded against a simulator: the server takes the provider's segment off
                    path = parts.path.removeprefix(f"/{provider}")
                    asked[record.conn, sent["tag"]] = f"{path}?{parts.query}" if parts.query else path
            elif record.do == "reply":
                reply = records.reply_of(record)
                found = asked.get((record.conn, reply.tag))
                if found is not None and reply.status == 200:
                    yield {"note": f"{_REST_NOTE} {found}", "frame": reply.body.decode("utf-8", "replace")}


def decoded(data: str | bytes) -> Any:
    """A frame as decoded JSON; where it is none, as it is."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data


@dataclass(frozen=True)
class Recording:
    """A loaded frames file. `offsets`: when each frame is due, in seconds from the start; empty: at once."""

    frames: Sequence[str | bytes]
    offsets: Sequence[float]
    round_secs: float
    rest: Mapping[str, bytes]
    """Recorded REST replies by path and query."""
    controls: Controls
    loop: bool

    def answer(self, path_with_query: str) -> Answer | None:
        """Find the recorded reply to a REST call: the same path, and most of the same query (limits may differ)."""
        wanted = urlsplit(path_with_query)
        query = set(parse_qsl(wanted.query))
        found, most = None, 0
        for recorded, body in self.rest.items():
            parts = urlsplit(recorded)
            pairs = set(parse_qsl(parts.query))
            common = len(pairs & query) if pairs else 1
            if parts.path == wanted.path and common > most:
                found, most = body, common
        return None if found is None else Answer(200, found)


class Playing:
    """One connection's place in a recording. Times are seconds of a monotonic clock."""

    def __init__(self, recording: Recording, started: float) -> None:
        self._recording, self._started = recording, started
        self._next = 0

    def due(self, now: float) -> int:
        """How many frames are due."""
        recording = self._recording
        if not recording.offsets:
            return len(recording.frames) - self._next
        return bisect_right(recording.offsets, now - self._started) - self._next

    def next_at(self, now: float) -> float | None:
        """When the next frame is due; None behind the end."""
        recording = self._recording
        if self.ended:
            return None
        return self._started + recording.offsets[self._next] if recording.offsets else now

    def take(self, now_ns: int) -> list[Step]:
        """The next frame; [] behind the end."""
        if self.ended:
            return []
        frame = self._recording.frames[self._next]
        self._forward()
        return [frame]

    def jump(self) -> None:
        """Leave out the next frame."""
        if not self.ended:
            self._forward()

    @property
    def ended(self) -> bool:
        return self._next >= len(self._recording.frames)

    def passes(self, step: Step) -> bool:
        """Tell whether what the side itself would send goes out: answers, and heartbeats behind the end."""
        return passes(self._recording.controls, step, keepalive=self.ended)

    def _forward(self) -> None:
        self._next += 1
        if self._recording.loop and self.ended:
            self._next = 0
            self._started += self._recording.round_secs


def passes(controls: Controls, step: Step, *, keepalive: bool) -> bool:
    """Tell whether a step of the side goes out while a recording stands in for its data. Closing always does."""
    if not isinstance(step, (str, bytes)):
        return True
    frame = decoded(step)
    return controls.answer(frame) or (keepalive and controls.keepalive(frame))
