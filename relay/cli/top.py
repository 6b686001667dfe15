"""`relay top`: a running relay, live in the terminal."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from relay.cli._top import View

REFRESH_SECS = 1.0
_ARROWS = {
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[5~": "up", "\x1b[6~": "down", "\x1b[H": "home", "\x1b[F": "end",
    "\x1bOA": "up", "\x1bOB": "down", "\x1b[1~": "home", "\x1b[4~": "end",
}  # fmt: skip


@click.command(
    epilog="""Examples:

\b
  relay top
  relay top --url http://127.0.0.1:9464""",
)
@click.option("-c", "--config", default="relay.yaml", show_default=True, type=click.Path(dir_okay=False))
@click.option("--url", help="Address of the relay. Default: the one that runs with this config.")
@click.option("--sort", default="rate", show_default=True, type=click.Choice(["name", "rate", "age", "count"]))
@click.option("--filter", "wanted", default="", help="Only topics with this text in their name.")
def command(config: str, url: str | None, sort: str, wanted: str) -> None:
    """Watch a running relay: its providers, Redis, and each topic with rate and last value.

    Keys: space pauses, s sorts, p picks a provider, / filters, arrows turn pages, q quits. It needs
    `http: {enabled: true}` in the config, and a terminal; `relay status` prints the same once.
    """
    from relay.cli._common import fail
    from relay.cli._remote import Unreachable, document, find
    from relay.cli._top import View

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        fail("top needs a terminal; `relay status` prints the same once, --json too", 2)
    address = find(url, config)
    try:
        first = document(address, limit=0)
    except Unreachable as error:
        fail(f"no relay answers: {error}")
    _watch(address, View(sort=sort, filter=wanted), first)


def _watch(address: str, view: "View", doc: dict[str, Any]) -> None:
    import time

    from rich.console import Console, Group
    from rich.live import Live

    from relay.cli._remote import Unreachable, document
    from relay.cli._top import lines, press, room_for_topics

    console = Console(highlight=False)
    asked_at = 0.0
    ask = True
    with _keys() as read, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            now = time.monotonic()
            page = room_for_topics(doc, view, console.height)
            if ask or (not view.paused and now - asked_at >= REFRESH_SECS):
                asked_at, ask = now, False
                query = {"sort": view.sort, "filter": view.filter, "provider": view.provider, "offset": view.offset}
                try:
                    fresh = document(address, limit=page, **query)
                except Unreachable as error:
                    view.trouble = f"the relay does not answer, this is old: {error}"
                else:
                    view.trouble = ""
                    secs = (fresh["now"] - doc["now"]) / 1e9
                    if secs > REFRESH_SECS / 2:
                        view.cpu = max(0.0, fresh["cpu_secs"] - doc["cpu_secs"]) / secs
                    doc = fresh
            # one line less than the screen: a line break behind the last would scroll the first away
            live.update(Group(*lines(doc, view, console.width, console.height)), refresh=True)
            wait = REFRESH_SECS if view.paused else max(0.0, asked_at + REFRESH_SECS - time.monotonic())
            for key in read(wait):
                what = press(view, key, [p["name"] for p in doc["providers"]], page, doc["topics_matching"])
                if what == "quit":
                    return
                ask = ask or what == "ask"


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """Give a function that waits up to so many seconds for keys and lists them; arrows by their names."""
    import os
    import select
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def read(secs: float) -> list[str]:
        try:
            if not select.select([descriptor], [], [], secs)[0]:
                return []
        except KeyboardInterrupt:
            return ["q"]
        data = os.read(descriptor, 64).decode("utf-8", "replace")
        if data in _ARROWS and len(data) > 1:
            return [_ARROWS[data]]
        if data.startswith("\x1b") and len(data) > 1:
            return []  # a key that we do not know
        return list(data) if data else ["q"]  # no data: the terminal is gone

    tty.setcbreak(descriptor)
    try:
        yield read
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
