"""`relay sim`: the simulated providers by themselves, for a relay elsewhere or another program."""

import json
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from relay.simulator.playback import Playback
    from relay.simulator.server import Simulator

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_PORT = 7700
"""Tried first, so that the addresses in a relay.yaml stay right; the next free one where it is taken."""


def _close_after(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read `N` or `N:CODE`."""
    if value is None:
        return None
    count, _, code = value.partition(":")
    try:
        return int(count), int(code or 1001)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not N or N:CODE, such as 100:1012.", ctx, param) from None


def _fault(name: str, kind: Any, metavar: str, text: str) -> Callable[[Command], Command]:
    return click.option(f"--{name}", type=kind, metavar=metavar, help=text)


_COUNT = click.IntRange(min=1)


@click.command(
    epilog="""Examples:

\b
  relay sim
  relay sim coinbase --rate 5000
  relay sim kraken binance --drop-after 500 --fault-connections 3
  relay sim --play coinbase=recorded.jsonl --speed 10
  relay sim --json > addresses.json""",
)
@click.argument("providers", nargs=-1, metavar="[PROVIDER]...")
@click.option("--port", type=click.IntRange(0, 65535), help=f"Default: {DEFAULT_PORT}, or any free one; 0: any.")
@click.option("--rate", type=click.FloatRange(min=0), default=20.0, show_default=True, metavar="N",
              help="Data messages a second and connection; 0: as fast as clients read.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same prices.")
@click.option("--play", multiple=True, metavar="[PROVIDER=]FILE", help="Serve a frames file or a journal.")
@click.option("--speed", type=click.FloatRange(min=0), default=1.0, show_default=True, metavar="X",
              help="With --play: this much faster than recorded; 0: as fast as clients read.")  # fmt: skip
@click.option("--where", multiple=True, metavar="LABEL=VALUE", help="With --play: only lines with this label.")
@click.option("--loop", is_flag=True, help="With --play: begin again at the end.")
@click.option("--compression", is_flag=True, help="Offer permessage-deflate.")
@click.option("--refuse-auth", is_flag=True, help="No key is right.")
@_fault("refuse-upgrade", click.IntRange(300, 599), "STATUS", "Answer the upgrade with this HTTP status.")
@_fault("refuse-rest", click.IntRange(300, 599), "STATUS", "Answer REST calls with this HTTP status.")
@click.option("--hang", is_flag=True, help="Accept TCP, never answer the upgrade.")
@_fault("accept-and-close", int, "CODE", "Accept, then close with this code at once.")
@click.option("--silence", is_flag=True, help="Accept, then send nothing at all.")
@_fault("drop-every-secs", click.FloatRange(min=0, min_open=True), "SECS", "Abort connections of this age.")
@_fault("end-secs", click.FloatRange(min=0, min_open=True), "SECS", "End connections of this age as planned.")
@_fault("drop-after", _COUNT, "N", "Abort after n data messages.")
@click.option("--close-after", metavar="N[:CODE]", callback=_close_after, help="Close after n data messages.")
@_fault("stall-after", click.IntRange(min=0), "N", "Go silent after n data messages, and stay open.")
@click.option("--mute", is_flag=True, help="Heartbeats and answers, but no data.")
@_fault("garbage-every", _COUNT, "N", "A garbage text frame behind each n data messages.")
@_fault("binary-garbage-every", _COUNT, "N", "A garbage binary frame behind each n data messages.")
@_fault("slow-secs", click.FloatRange(min=0, min_open=True), "SECS", "Wait this long before each frame.")
@_fault("jump-every", _COUNT, "N", "Lose messages, each n data messages.")
@_fault("repeat-every", _COUNT, "N", "Send a message twice, each n data messages.")
@_fault("late-every", _COUNT, "N", "Send a message behind the 20 next ones, each n data messages.")
@_fault("fault-connections", _COUNT, "N", "Only the first n connections of a provider are faulty.")
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as one line of JSON.")
def command(
    providers: tuple[str, ...],
    port: int | None,
    rate: float,
    seed: int,
    play: tuple[str, ...],
    speed: float,
    where: tuple[str, ...],
    loop: bool,
    compression: bool,
    fault_connections: int | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Simulate providers on loopback until Ctrl-C: their own protocol, made-up prices, faults on request.

    Without a PROVIDER: all of them. Prints the addresses, and the lines that point a relay.yaml at them.
    """
    from relay.cli._common import fail, usage_near
    from relay.errors import RelayError
    from relay.simulator import SIDES
    from relay.simulator.faults import Faults

    for name in providers:
        if name not in SIDES:
            raise click.UsageError(usage_near("simulated provider", name, SIDES))
    playbacks = _playbacks(play, providers, SIDES, speed=speed, where=_labels(where), loop=loop)
    if not playbacks and (where or loop or speed != 1.0):
        raise click.UsageError("--speed, --where and --loop need --play.")
    try:
        faults = Faults(connections=fault_connections, **{k: v for k, v in flags.items() if v is not None})
    except ValueError as error:
        raise click.UsageError(str(error)) from None

    import anyio

    from relay.simulator.server import Simulator

    simulator = Simulator(
        # a file to play names the provider wanted, where nothing else does
        providers or list(playbacks) or None,
        port=DEFAULT_PORT if port is None else port,
        rest_port=(DEFAULT_PORT if port is None else port) + 1 if port != 0 else 0,
        rate=rate,
        seed=seed,
        faults=faults,
        play=playbacks,
        compression=compression,
    )
    try:
        anyio.run(_serve, simulator, port is None, as_json)
    except RelayError as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot listen on port {simulator.port}: {error.strerror or error}")


def _labels(where: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for item in where:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise click.UsageError(f"--where takes LABEL=VALUE, not {item!r}.")
        labels[name] = value
    return labels


def _playbacks(play: tuple[str, ...], providers: tuple[str, ...], known: Any, **how: Any) -> dict[str, "Playback"]:
    """Which file stands in for which provider: named, the only one asked for, or by the file's own name."""
    from pathlib import Path

    from relay.cli._common import usage_near
    from relay.simulator.playback import Playback

    found: dict[str, Playback] = {}
    for item in play:
        name, equals, path = item.partition("=")
        if not equals or "/" in name:
            name, path = (providers[0] if len(providers) == 1 else Path(item).stem), item
            if name not in known:
                raise click.UsageError(f"--play {item}: say which provider: --play PROVIDER={item}.")
        elif name not in known:
            raise click.UsageError(usage_near("simulated provider", name, known))
        if providers and name not in providers:
            raise click.UsageError(f"--play names {name}, which is not among the providers asked for.")
        if name in found:
            raise click.UsageError(f"--play names {name} twice.")
        found[name] = Playback(path, **how)
    return found


async def _serve(simulator: "Simulator", elsewhere: bool, as_json: bool) -> None:
    import anyio

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        try:
            await simulator.start()
        except OSError:
            if not elsewhere:
                raise
            simulator.port = simulator.rest_port = 0
            await simulator.start()
        try:
            print(_as_json(simulator) if as_json else _as_text(simulator), flush=True)
            async for _ in signals:
                break
        finally:
            await simulator.stop()
    for name, stats in simulator.stats.items():
        if stats.connects or stats.rest:
            faults = "".join(f", {fault} {count}" for fault, count in sorted(stats.faults.items()))
            print(f"{name}: {stats.connects} connects, {stats.sent} data messages{faults}", file=sys.stderr)


def _addresses(simulator: "Simulator") -> dict[str, dict[str, str]]:
    return {
        name: {"url": simulator.url(name)} | ({"rest_url": simulator.rest_url(name)} if spec.rest else {})
        for name, spec in simulator.sides.items()
    }


def _as_json(simulator: "Simulator") -> str:
    return json.dumps({"providers": _addresses(simulator)})


def _as_text(simulator: "Simulator") -> str:
    lines = ["# Simulated providers, made-up prices. Ctrl-C stops them. In relay.yaml:", "providers:"]
    for name, addresses in _addresses(simulator).items():
        lines.append(f"  {name}:")
        lines += [f"    {option}: {address}" for option, address in addresses.items()]
    return "\n".join(lines)
