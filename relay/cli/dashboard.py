"""`relay dashboard`: prices, trades, bars and the providers' health in a web page, read from Redis."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from relay.config import Config


@click.command(
    epilog="""Examples:

\b
  relay dashboard
  relay dashboard --url redis://bus.internal:6379/0 --port 9000
  relay dashboard --host 0.0.0.0 --allow-host desk.internal""",
)
@click.option("-c", "--config", default="relay.yaml", show_default=True, type=click.Path(dir_okay=False))
@click.option("--url", help="Redis to read. Default: the one in the config, or the bundled server of a running relay.")
@click.option("--prefix", help="What stands before the topics' names (`redis.prefix`). Default: the config's.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="Also answer to this name; may be repeated.")
@click.option("--accounts", is_flag=True, help="Show orders, positions and balances too; else they are not even read.")
@click.option(
    "--stale-secs", type=click.FloatRange(min=0), metavar="SECS",
    help="Age at which a price looks old, 0: never. Default: the channel's limit in the config.",
)  # fmt: skip
def command(
    config: str,
    url: str | None,
    prefix: str | None,
    port: int,
    host: str,
    hosts: tuple[str, ...],
    accounts: bool,
    stale_secs: float | None,
) -> None:
    """Serve a live page of everything on the bus until Ctrl-C.

    It is a consumer of Redis like any other: it reads the streams, never the providers, writes nothing, and comes up
    by itself when the relay or Redis does. There is no login: who reaches the port reads the prices, so it serves this
    machine alone unless --host says otherwise.
    """
    from relay.cli._common import fail, read_config
    from relay.errors import RelayError

    loaded = read_config(config) if Path(config).exists() else None
    if loaded is None and url is None:
        fail(f"there is no {config}; name one with -c FILE, or a server with --url", 78)
    import anyio

    from relay.dashboard.server import Dashboard, Settings, lists_of
    from relay.dashboard.state import Limits
    from relay.opening import login_of
    from relay.targets import target_of

    try:
        target_of(url or "")
    except ValueError as error:
        raise click.UsageError(f"--url {error}.") from None
    prefixes = [prefix] if prefix is not None else ["", loaded.redis.prefix if loaded else ""]
    try:
        dashboard = Dashboard(
            Settings(
                host=host,
                port=port,
                hosts=hosts,
                accounts=accounts,
                limits=Limits(_limits(loaded), all=stale_secs),
                lists=lists_of(prefixes),
                redis_options={} if url or loaded is None or loaded.redis.url == "embedded" else login_of(loaded.redis),
            ),
            _address(url, loaded),
        )
    except RelayError as error:
        fail(str(error))
    print(f"Dashboard: {dashboard.url}", file=sys.stderr)
    if host not in ("127.0.0.1", "::1", "localhost"):
        print("No login: who reaches this port reads it. Put a proxy with one before it.", file=sys.stderr)
    try:
        anyio.run(_run, dashboard)
    except RelayError as error:
        fail(str(error))


async def _run(dashboard: Any) -> None:
    import signal

    import anyio

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dashboard.run)
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            async for _ in received:
                break
        tasks.cancel_scope.cancel()


def _address(url: str | None, config: "Config | None") -> Callable[[], str]:
    """Give what is asked before each connect: the bundled server may come back under another port."""
    if url is not None:
        return lambda: url
    assert config is not None
    if config.redis.url != "embedded":
        return lambda: config.redis.url
    left = Path(config.state_dir) / "redis_url"

    def read() -> str:
        try:
            return left.read_text().strip()
        except OSError:
            raise ConnectionError("no relay with a bundled server runs here") from None

    return read


def _limits(config: "Config | None") -> dict[tuple[str, str], float]:
    """Give the age limits by provider and channel: as each declares them, then as the config says."""
    from relay.providers import PROVIDERS

    found: dict[tuple[str, str], float] = {
        (name, channel): about.cadence_secs
        for name, spec in PROVIDERS.items()
        for channel, about in spec.channels.items()
    }
    for name, section in (config.providers if config else {}).items():
        for channel, about in section.spec.channels.items():
            found[name, channel] = section.options.stale_secs.get(channel, about.cadence_secs)
    return found
