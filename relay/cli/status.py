"""`relay status`: how a running relay stands, once."""

import click

PAUSE_SECS = 1.0


@click.command(
    epilog="""Examples:

\b
  relay status
  relay status --filter trades. --sort rate --topics 50
  relay status --json | jq '.providers[] | {name, gaps, stale}'""",
)
@click.option("-c", "--config", default="relay.yaml", show_default=True, type=click.Path(dir_okay=False))
@click.option("--url", help="Address of the relay. Default: the one that runs with this config.")
@click.option("--topics", default=20, show_default=True, type=click.IntRange(0, 1000), help="Most topics to list.")
@click.option("--filter", "wanted", default="", help="Only topics with this text in their name.")
@click.option("--sort", default="name", show_default=True, type=click.Choice(["name", "rate", "age", "count"]))
@click.option("--json", "as_json", is_flag=True, help="Print the whole document as JSON.")
def command(config: str, url: str | None, topics: int, wanted: str, sort: str, as_json: bool) -> None:
    """Print how a running relay stands: providers, Redis, topics with their last value.

    It takes a second, for the rates.
    """
    import json
    import time

    from relay.cli._common import fail
    from relay.cli._remote import Unreachable, document, find

    address = find(url, config)
    try:
        first = document(address, limit=0)
        time.sleep(PAUSE_SECS)
        found = document(address, limit=topics, filter=wanted, sort=sort)
    except Unreachable as error:
        fail(f"no relay answers: {error}")
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from relay.cli._top import View, lines

    console = Console(highlight=False)
    view = View(sort=sort, filter=wanted, cpu=(found["cpu_secs"] - first["cpu_secs"]) / PAUSE_SECS)
    # in a pipe nobody is short of columns
    for line in lines(found, view, console.width if console.is_terminal else max(console.width, 200), None):
        console.print(line, soft_wrap=True)
    left = found["topics_matching"] - len(found["topics"])
    if left > 0:
        console.print(f"and {left:,} more topics; --topics, --filter")
