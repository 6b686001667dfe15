"""`relay run`: the relay itself."""

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from relay.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from relay.bridge import Bridge
    from relay.config import Config
    from relay.held import Held
    from relay.systemd import Notifier

STATUS_SECS = 5.0
"""How often the status line of systemd is looked at."""
GC_OBJECTS = 50_000
"""Objects made and kept between two looks for circles."""


@click.command(
    epilog="""Examples:

\b
  relay run -c relay.yaml
  relay run -c relay.yaml --log-format json
  relay run -c relay.yaml --record recordings
  relay run --shards 4         (four processes on this host)
  relay run --shard 2/4        (the second of four, on a host of its own)
  relay tail 'quotes.*'        (in another terminal)""",
)
@click.option("-c", "--config", default="relay.yaml", show_default=True, type=click.Path(dir_okay=False))
@click.option("--record", metavar="DIR", type=click.Path(file_okay=False), help="Record every frame in this folder.")
@click.option("--shards", type=click.IntRange(1, 64), metavar="N", help="Deal the topics over N processes here.")
@click.option("--shard", metavar="K/N", help="Run the Kth of N parts, the others run elsewhere.")
@click.option("--takeover", is_flag=True, help="Take the name's lease from a relay that still holds it.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Default: from the config.")
@click.option("--log-format", type=click.Choice(["auto", "text", "json"]), help="Default: from the config.")
def command(
    config: str,
    record: str | None,
    shards: int | None,
    shard: str | None,
    takeover: bool,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Run the relay until Ctrl-C or SIGTERM.

    It starts with a correct config even when Redis or every provider is down, says so, and comes up when they do.
    A second signal ends it at once. SIGHUP reads the config again: symbols and providers come and go at run time, the
    rest keeps its sessions; a wrong config is refused whole. Exit codes: 0 after a planned stop, 78 for a wrong config,
    1 for anything else that ends it, with one line that says why.
    """
    from relay.cli._common import fail, read_config
    from relay.errors import ConfigError, RelayError

    if shards is not None and shard is not None:
        raise click.UsageError("--shards starts all shards on this host, --shard is one of them: give one of the two")
    place, held = _place(shard)

    def recording(loaded: "Config") -> "Config":
        import msgspec

        if record:
            loaded = msgspec.structs.replace(loaded, journal=msgspec.structs.replace(loaded.journal, dir=record))
        if place is not None:
            from relay.cli._shards import part

            loaded = part(loaded, *place, held, config)
        return loaded

    loaded = read_config(config)
    if shards is not None:
        from relay.cli._shards import run_supervised

        more = [*(["--record", record] if record else []), *(["--takeover"] if takeover else [])]
        run_supervised(loaded, config, shards, more, log_level, log_format)
        return
    try:
        loaded = recording(loaded)
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(ConfigError.exit_code) from None
    import anyio

    try:
        import uvloop
    except ImportError:
        options: dict[str, Any] = {}
    else:
        options = {"loop_factory": uvloop.new_event_loop}
    try:
        anyio.run(
            _run, loaded, config, recording, takeover, log_level, log_format, held,
            backend="asyncio", backend_options=options,
        )  # fmt: skip
    except RelayError as error:
        fail(str(error))


def _place(shard: str | None) -> "tuple[tuple[int, int] | None, Held | None]":
    """Read which shard this is, and what its supervisor holds, if it has one."""
    if shard is None:
        return None, None
    from relay.cli._shards import held
    from relay.shards import parse

    try:
        return parse(shard), held()
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--shard") from None


async def _run(
    config: "Config",
    file: str,
    recording: "Callable[[Config], Config]",
    takeover: bool,
    level: str | None,
    form: str | None,
    held: "Held | None",
) -> None:
    import anyio

    from relay.bridge import Bridge
    from relay.cli._screen import Screen
    from relay.config import secrets_of
    from relay.errors import RelayError
    from relay.log import configure
    from relay.redaction import Redactor
    from relay.sink import Fenced
    from relay.systemd import Notifier

    screen = Screen(sys.stderr)
    redactor = Redactor(secrets_of(config))
    log: Any = None

    def logged(config: "Config") -> None:
        nonlocal log
        log = configure(redactor, level=level or config.log.level, form=form or config.log.format, write=screen.line)

    def event(level: str, text: str, **fields: Any) -> None:
        getattr(log, level)(text, **fields)

    logged(config)
    for warning in config.warnings:
        event("warning", str(warning))
    notifier = Notifier()
    # All that is loaded stays; of what comes, messages are no part of circles, and a batch of them at once is no reason
    # to look for some: collecting at every 700 objects cost 5 % of the throughput.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, *gc.get_threshold()[1:])

    async def run_one(bridge: Bridge, again: bool = False) -> bool:
        """Run a bridge to its end; True: another node has taken over from it, so it stands by again."""
        ended: RelayError | None = None

        async def reread() -> None:
            await _reread(bridge, file, recording, logged)

        async with bridge.started():
            if not again:
                screen.banner(bridge)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_signals, bridge, event, reread, notifier)
                tasks.start_soon(_notify, bridge, notifier)
                tasks.start_soon(screen.progress, bridge)
                try:
                    await bridge.serve()
                except RelayError as error:
                    ended = error  # raised in here it would come out in a group, and be shown with all its frames
                finally:
                    screen.close()
                tasks.cancel_scope.cancel()
        if ended is not None and not (isinstance(ended, Fenced) and bridge.standby is not None):
            raise ended
        return ended is not None and not bridge.stopping

    bridge = Bridge(config, event, takeover=takeover, redactor=redactor, held=held)
    again = False
    while await run_one(bridge, again):
        again = True
        event("warning", "superseded: this node wrote nothing more, and stands by from here on")
        bridge = Bridge(bridge.config, event, redactor=redactor, held=held)
    event("info", "stopped")


async def _reread(
    bridge: "Bridge", file: str, recording: "Callable[[Config], Config]", logged: "Callable[[Config], None]"
) -> None:
    """Read the config again and run it, or say what is wrong with it and go on as before."""
    from relay.cli._config import load_config
    from relay.config import secrets_of
    from relay.errors import ConfigError
    from relay.reload import refused, reload

    try:
        if file == "-":
            raise ConfigError([Problem("<stdin>", 0, 0, "", "cannot be read a second time; give a file with -c")])
        loaded = recording(load_config(file))
        bridge.redactor.add(secrets_of(loaded))
        await reload(bridge, loaded, file)
    except ConfigError as error:
        refused(bridge, error)
    else:
        logged(loaded)
        for warning in loaded.warnings:
            bridge.event("warning", str(warning))


async def _notify(bridge: "Bridge", notifier: "Notifier") -> None:
    """Tell systemd that we are ready, how we are, and that the loop turns."""
    import anyio

    if not notifier:
        return
    notifier.tell("READY=1")  # at once: a provider or a Redis that is down is no reason to restart us
    pause = min(STATUS_SECS, notifier.watchdog_secs / 3 or STATUS_SECS)
    said = ""
    while True:
        if notifier.watchdog_secs:
            notifier.tell("WATCHDOG=1")
        live, feeds = bridge.feeds_live()
        role = f"{bridge.standby.role}: " if bridge.standby is not None else ""
        status = f"STATUS={role}{live} of {feeds} connections live, Redis {bridge.sink.state}"
        if status != said:
            said = status
            notifier.tell(status)
        await anyio.sleep(pause)


async def _signals(bridge: "Bridge", event: Any, reread: "Callable[[], Awaitable[None]]", notifier: "Notifier") -> None:
    """The first SIGINT or SIGTERM begins a planned stop, the second ends the process now; SIGHUP reads the config."""
    import anyio

    seen = 0
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as received:
        async for number in received:
            if number == signal.SIGHUP:
                if not seen:
                    notifier.reloading()
                    await reread()
                    notifier.tell("READY=1")
                continue
            seen += 1
            if seen > 1 and bridge.held is not None:
                continue  # systemd tells all of us, our supervisor tells us again; it ends us by SIGKILL if need be
            if seen > 1:
                if bridge.server is not None:
                    bridge.server.kill()
                os._exit(130 if number == signal.SIGINT else 143)
            event("info", "stopping", signal=signal.Signals(number).name)
            notifier.tell("STOPPING=1", "STATUS=stopping: what waits is written")
            bridge.stop()
