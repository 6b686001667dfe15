"""What `relay replay` shows on a terminal: a progress bar in recorded time, keys for pause and speed, single steps."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio

from relay.player import Message, Player
from relay.times import iso

REFRESH_SECS = 0.1
SPEEDS = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0, 0.0)
"""What the + and - keys step through; the last, 0, is as fast as it goes."""
KEYS = "space pause  + - speed  m max  q quit"


@contextlib.contextmanager
def keys() -> Iterator[Callable[[Callable[[str], None]], None] | None]:
    """Give a function that sets who gets each key pressed; None where standard input is no terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()

    def listen(heard: Callable[[str], None]) -> None:
        loop.remove_reader(descriptor)
        loop.add_reader(descriptor, lambda: heard(sys.stdin.read(1)))

    tty.setcbreak(descriptor)
    try:
        yield listen
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def control(player: Player, key: str) -> None:
    """Do what a key asks for."""
    if key == " ":
        player.paused = not player.paused
    elif key in "+=-_":
        at = min(range(len(SPEEDS)), key=lambda i: abs((SPEEDS[i] or 1e9) - (player.speed or 1e9)))
        player.speed = SPEEDS[max(0, min(len(SPEEDS) - 1, at + (1 if key in "+=" else -1)))]
    elif key == "m":
        player.speed = 0.0
    elif key in "qQ\x1b":
        player.stop()


def speed_text(speed: float) -> str:
    return f"x{speed:g}" if speed else "max"


class Bar:
    """The progress bar on standard error; nothing where that is no terminal."""

    def __init__(self, player: Player, first_ns: int, last_ns: int, *, with_keys: bool) -> None:
        self._player, self._first_ns, self._last_ns = player, first_ns, last_ns
        self._keys = with_keys

    async def run(self) -> None:
        """Show until cancelled."""
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        player = self._player
        progress = Progress(
            TextColumn("{task.fields[position]}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[mode]}"),
            console=Console(stderr=True),
            transient=True,
            expand=True,
        )
        total = max((self._last_ns - self._first_ns) / 1e9, 0.001)
        task = progress.add_task("", total=total, position="", rate="", mode="")
        before, then, rate = 0, time.monotonic(), 0.0
        with progress:
            while True:
                await anyio.sleep(REFRESH_SECS)
                now = time.monotonic()
                if now - then >= 1.0:
                    rate, before, then = (player.messages - before) / (now - then), player.messages, now
                position = player.position_ns or self._first_ns
                warming = position < player.from_ns
                mode = "paused" if player.paused else "warming up" if warming else speed_text(player.speed)
                progress.update(
                    task,
                    completed=min(max((position - self._first_ns) / 1e9, 0.0), total),
                    position=iso(position // 1_000_000 * 1_000_000)[:23],
                    rate=f"{player.messages:,} msg {rate:,.0f}/s",
                    mode=mode + (f"  ({KEYS})" if self._keys else ""),
                )


class Steps:
    """`--step`: shows each frame and what became of it side by side, and waits for a key."""

    def __init__(
        self, listen: Callable[[Callable[[str], None]], None], stop: Callable[[], None], provider: str | None = None
    ) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._stop, self._provider = stop, provider
        self._pressed = anyio.Event()
        self._key = ""
        self._free = False
        listen(self._heard)
        self._console.print("space or enter: next   c: play on   q: quit", style="dim")

    def _heard(self, key: str) -> None:
        self._key = key
        self._pressed.set()

    def _concerns(self, argument: Any) -> bool:
        """Whether a step is of the provider that was asked for."""
        connection = getattr(argument, "conn", None)
        return self._provider is None or connection is None or str(connection).split("/")[0] == self._provider

    async def __call__(self, argument: Any, now_ns: int, messages: list[Message]) -> None:
        """Show one step and wait for a key; what brings neither frame nor message passes unseen."""
        text = frame_text(argument)
        if self._free or (not messages and (text is None or not self._concerns(argument))):
            return
        self._console.print(side_by_side(text or "", now_ns, messages))
        self._pressed = anyio.Event()
        await self._pressed.wait()
        if self._key in "qQ\x1b":
            self._stop()
        self._free = self._key == "c" or self._key in "qQ\x1b"


SILENT = frozenset({"tick", "begun", "made", "opened", "closed", "asked"})
"""Records without a frame of their own: shown only where they gave messages."""


def frame_text(argument: Any) -> str | None:
    """A step's frame as readable text; None where it has none."""
    do = getattr(argument, "do", "in")
    data = getattr(argument, "frame", None)
    if data is None:
        data = getattr(argument, "data", None)
    if isinstance(argument, tuple) and len(argument) == 2 and isinstance(argument[1], bytes):
        data = argument[1]  # an entry of a stream
    if do in SILENT or data is None:
        return None
    raw = data if isinstance(data, str) else bytes(data).decode("utf-8", "replace")
    if do != "in":
        raw = f"({do} {getattr(argument, 'conn', '')}) {'' if raw == '{}' else raw}"
    return pretty(raw)


def pretty(text: str) -> str:
    """JSON on several lines; anything else as it is, without control characters."""
    import msgspec

    try:
        text = msgspec.json.format(text.encode("utf-8", "surrogatepass"), indent=1).decode()
    except (msgspec.DecodeError, UnicodeError):
        pass
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text[:4000])


def side_by_side(text: str, now_ns: int, messages: list[Message]) -> Any:
    """A table of two columns: the frame, and the messages that it gave."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    right = Text()
    for topic, entry_id, body in messages:
        right.append(f"{topic.name} {entry_id}\n", style="bold")
        right.append(pretty(body.decode("utf-8", "replace")) + "\n")
    if not messages:
        right.append("(no message)", style="dim")
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    table.add_row(Panel(Text(text), title=iso(now_ns)), Panel(right, title=f"{len(messages)} message(s)"))
    return table
