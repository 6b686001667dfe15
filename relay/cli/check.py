"""`relay check`: what a relay.yaml would run, or every error in it. Nothing is started, connected or written."""

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from relay.config import Config, ProviderConfig

TOPICS_SHOWN_MAX = 40
"""More than a screen is for programs: --json lists all."""


@click.command(
    epilog="""Examples:

\b
  relay check
  relay check --shards 4       (which topics go where)
  relay check -c /etc/relay/relay.yaml --json | jq -r '.topics[].name'""",
)
@click.option("-c", "--config", default="relay.yaml", show_default=True, type=click.Path(), help="`-`: standard input.")
@click.option(
    "--shards", type=click.IntRange(1, 64), metavar="N", help="Also show how N shards would share the topics."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, errors too.")
def command(config: str, shards: int | None, as_json: bool) -> None:
    """Show what a relay.yaml would run, or every error in it.

    Variables and secret files are read as `relay run` would read them; no secret is printed. Exit code 0, or 78 when
    the file cannot be used.
    """
    from relay.cli._common import read_config
    from relay.cli._config import load_config
    from relay.errors import ConfigError

    try:
        loaded = load_config(config) if as_json else read_config(config)
        parts = _dealt(loaded, shards, config) if shards else None
    except ConfigError as error:
        if as_json:
            click.echo(_json({"ok": False, "errors": [_problem(p) for p in error.problems]}))
        else:
            click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    found = describe(loaded) | (parts or {})
    if as_json:
        click.echo(_json(found))
        return
    for warning in loaded.warnings:
        click.echo(f"{warning} (warning)", err=True)
    for line in _lines(config, found):
        click.echo(line)


def describe(config: "Config") -> dict[str, Any]:
    """Tell what a configuration would run, as plain JSON-able values without secrets."""
    from relay.config import EMBEDDED, data_dir_of, prefix_of, secrets_of, shown_url, topics_of
    from relay.redaction import Redactor

    redactor = Redactor(secrets_of(config))
    embedded = config.redis.url == EMBEDDED
    redis: dict[str, Any] = {"target": EMBEDDED if embedded else shown_url(config.redis.url)}
    if embedded:
        redis |= {"port": config.redis.port, "data_dir": data_dir_of(config)}
    redis |= {
        "prefix": prefix_of(config),
        "stream_length_max": config.redis.stream_length_max,
        "retention_secs": config.redis.retention_secs,
        "streams_bytes_max": config.redis.streams_bytes_max,
        "pubsub": config.redis.pubsub,
    }
    return {
        "ok": True,
        "name": config.name,
        "redis": redis,
        "merge": config.merge,
        "state_dir": config.state_dir,
        "providers": [
            {
                "name": name,
                "type": provider.spec.name,
                "title": provider.spec.title,
                "simulated": provider.options.simulate,
                "connections": [
                    {
                        "label": planned.label,
                        "url": redactor.text(_url(provider, planned.subscriptions)),
                        "subscriptions": len(planned.subscriptions),
                        "channels": dict(Counter(sub.channel for sub in planned.subscriptions)),
                    }
                    for planned in provider.connections
                ],
            }
            for name, provider in config.providers.items()
        ],
        "topics": [
            {"name": t.name, "kind": t.kind}
            | ({"provider": t.provider} if t.provider else {})
            | ({"raw_symbol": t.subscription.raw} if t.subscription and t.subscription.raw else {})
            | ({"pattern": True} if t.pattern else {})
            for t in topics_of(config)
        ],
        "warnings": [_problem(p) for p in config.warnings],
    }


def _dealt(config: "Config", count: int, file: str) -> dict[str, Any]:
    """Tell which topics each shard gets. Raises: ConfigError where the configuration cannot be parted so."""
    from relay.shards import deal, name_of, sharded, topics_by_shard

    dealt = deal(config, count)
    shards = []
    for number, topics in enumerate(topics_by_shard(config, dealt), 1):
        part = sharded(config, number, count, file)
        links = {name: len(provider.connections) for name, provider in part.providers.items()}
        shards.append({"name": name_of(config.name, number), "connections": links, "topics": [t.name for t in topics]})
    return {"shards": shards, "together": dict(dealt.together)}


def _url(provider: "ProviderConfig", subscriptions: Any) -> str:
    """The address that a connection would open, without its query; asked of the provider, which is pure."""
    from relay.config import shown_url
    from relay.errors import SessionError

    if provider.options.simulate:
        return "simulator"
    spec, options = provider.spec, provider.options
    try:
        url = spec.session(options, subscriptions, spec.shared(options, provider.account)).connect().url
    except SessionError as error:
        return f"none yet: {error.text}"
    return shown_url(url)


def _lines(file: str, found: dict[str, Any]) -> list[str]:
    redis = found["redis"]
    target = redis["target"]
    if "port" in redis:
        target = f"the embedded server, port {redis['port']} or the next free one, data in {redis['data_dir']}"
    out = [
        f"{file} is fine.",
        "",
        f"relay   {found['name']}",
        f"redis   {target}",
    ]
    if redis["prefix"]:
        out.append(f"prefix  {redis['prefix']}")
    for provider in found["providers"]:
        title = provider["title"] + (", SIMULATED: made-up prices" if provider["simulated"] else "")
        out += ["", f"{provider['name']}: {title}"]
        for link in provider["connections"]:
            channels = ", ".join(f"{channel} {count}" for channel, count in link["channels"].items())
            out.append(f"  connection {link['label']} to {link['url']}: {channels}")
    if "shards" in found:
        out += ["", *_shard_lines(found)]
        return out
    topics = found["topics"]
    width = min(48, max(len(t["name"]) for t in topics))
    out += ["", f"{len(topics)} topics"]
    for topic in topics[:TOPICS_SHOWN_MAX]:
        source = " ".join(filter(None, (topic.get("provider"), topic.get("raw_symbol"))))
        out.append(f"  {topic['name']:{width}}  {source}".rstrip())
    if len(topics) > TOPICS_SHOWN_MAX:
        out.append(f"  ... and {len(topics) - TOPICS_SHOWN_MAX} more; --json lists all")
    return out


def _shard_lines(found: dict[str, Any]) -> list[str]:
    count = len(found["shards"])
    own = 2  # status and dead letters
    total, plural = len(found["topics"]) - own, "s" if count > 1 else ""
    out = [f"{total} topics over {count} shard{plural}, besides status and dead letters of each"]
    for name, why in found["together"].items():
        out.append(f"{name}: all on one shard, {why}")
    for shard in found["shards"]:
        links = ", ".join(f"{name} {number}" for name, number in shard["connections"].items())
        total = len(shard["topics"])
        out += ["", f"{shard['name']}: {total} topic{'' if total == 1 else 's'}; connections: {links or 'none'}"]
        out += [f"  {name}" for name in shard["topics"][:TOPICS_SHOWN_MAX]]
        if total > TOPICS_SHOWN_MAX:
            out.append(f"  ... and {total - TOPICS_SHOWN_MAX} more; --json lists all")
    return out


def _problem(problem: Any) -> dict[str, Any]:
    return {
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "path": problem.path,
        "text": problem.text,
    }


def _json(value: Any) -> str:
    import json

    return json.dumps(value, indent=2, ensure_ascii=False)
