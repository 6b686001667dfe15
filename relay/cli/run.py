"""`relay run`: the relay itself."""

import os
import signal
import sys
from typing import Any

import click


@click.command(
    epilog="""Examples:

\b
  relay run -c relay.yaml
  relay run -c relay.yaml --log-format json
  relay run -c relay.yaml --record recordings
  relay tail 'quotes.*'        (in another terminal)""",
)
@click.option("-c", "--config", default="relay.yaml", show_default=True, type=click.Path(dir_okay=False))
@click.option("--record", metavar="DIR", type=click.Path(file_okay=False), help="Record every frame in this folder.")
@click.option("--takeover", is_flag=True, help="Take the name's lease from a relay that still holds it.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Default: from the config.")
@click.option("--log-format", type=click.Choice(["auto", "text", "json"]), help="Default: from the config.")
def command(config: str, record: str | None, takeover: bool, log_level: str | None, log_format: str | None) -> None:
    """Run the relay until Ctrl-C or SIGTERM.

    It starts with a correct config even when Redis or every provider is down, says so, and comes up when they do.
    A second signal ends it at once. Exit codes: 0 after a planned stop, 78 for a wrong config, 1 for anything else
    that ends it, with one line that says why.
    """
    from relay.cli._common import fail, read_config
    from relay.errors import RelayError

    loaded = read_config(config)
    if record:
        import msgspec

        loaded = msgspec.structs.replace(loaded, journal=msgspec.structs.replace(loaded.journal, dir=record))
    import anyio

    try:
        import uvloop
    except ImportError:
        options: dict[str, Any] = {}
    else:
        options = {"loop_factory": uvloop.new_event_loop}
    try:
        anyio.run(_run, loaded, takeover, log_level, log_format, backend="asyncio", backend_options=options)
    except RelayError as error:
        fail(str(error))


async def _run(config: Any, takeover: bool, level: str | None, form: str | None) -> None:
    import anyio

    from relay.bridge import Bridge
    from relay.cli._screen import Screen
    from relay.config import secrets_of
    from relay.log import configure
    from relay.redaction import Redactor

    screen = Screen(sys.stderr)
    redactor = Redactor(secrets_of(config))
    log = configure(
        redactor,
        level=level or config.log.level,
        form=form or config.log.format,
        write=screen.line,
    )

    def event(level: str, text: str, **fields: Any) -> None:
        getattr(log, level)(text, **fields)

    for warning in config.warnings:
        event("warning", str(warning))
    bridge = Bridge(config, event, takeover=takeover, redactor=redactor)
    async with bridge.started():
        screen.banner(bridge)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_signals, bridge, event)
            tasks.start_soon(screen.progress, bridge)
            try:
                await bridge.serve()
            finally:
                screen.close()
            tasks.cancel_scope.cancel()
    event("info", "stopped")


async def _signals(bridge: Any, event: Any) -> None:
    """The first SIGINT or SIGTERM begins a planned stop, the second ends the process now."""
    import anyio

    seen = 0
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        async for number in received:
            seen += 1
            if seen > 1:
                if bridge.server is not None:
                    bridge.server.kill()
                os._exit(130 if number == signal.SIGINT else 143)
            event("info", "stopping", signal=signal.Signals(number).name)
            bridge.stop()
