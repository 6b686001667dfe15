"""`relay health`: is it well? By exit code, for containers and scripts."""

import click


@click.command(
    epilog="""Examples:

\b
  relay health                      # is the process well? for a container's health check
  relay health --ready              # Redis is up and a feed is live
  relay health --url http://127.0.0.1:9464""",
)
@click.option("-c", "--config", default="relay.yaml", show_default=True, type=click.Path(dir_okay=False))
@click.option("--url", help="Address of the relay. Default: the one that runs with this config.")
@click.option("--ready", is_flag=True, help="Also ask whether Redis is up and a feed is live.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(config: str, url: str | None, ready: bool, as_json: bool) -> None:
    """Ask a running relay whether it is well: exit code 0 if so, else 1.

    Without --ready a provider or a Redis that is down is no illness: to restart the relay would not mend it.
    """
    import json

    from relay.cli._remote import Unreachable, ask, find

    try:
        status, body = ask(find(url, config), "/readyz" if ready else "/healthz")
    except Unreachable as error:
        well, text = False, str(error)
    else:
        text = body[:200].decode("utf-8", "replace").strip()
        well = status == 200
        if status not in (200, 503):
            text = f"HTTP {status}: {text}"
    click.echo(json.dumps({"ok": well, "text": text}) if as_json else text, err=not well and not as_json)
    raise SystemExit(0 if well else 1)
