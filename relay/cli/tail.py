"""`relay tail`: follow topics and print their messages."""

import fnmatch
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

BLOCK_MS = 1000  # below redis-py's socket time-out; also how often new topics are looked for
READ_COUNT = 500


@click.command(
    epilog="""Examples:

\b
  relay tail 'quotes.*'
  relay tail trades.BTC-USD --since 10m --json | jq .price
  relay tail 'status.*' 'deadletter.*' --since 1h --no-follow
  relay tail '*' --since all --json --topics >> published.jsonl    for `relay replay --diff --against`""",
)
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC...")
@click.option("--url", help="Redis to read. Default: the one in the config, or the bundled server of a running relay.")
@click.option("-c", "--config", default="relay.yaml", show_default=True, type=click.Path(dir_okay=False))
@click.option("--since", help="Start that long ago (90s, 10m, 2h, 1d), at an ISO time, or `all`. Default: now.")
@click.option("--json", "as_json", is_flag=True, help="Print the messages as published, one JSON line each.")
@click.option("--topics", "with_topics", is_flag=True, help="With --json: print {topic, id, message}.")
@click.option("--follow/--no-follow", default=True, help="Stop at the end instead of waiting for more.")
def command(
    topics: tuple[str, ...],
    url: str | None,
    config: str,
    since: str | None,
    as_json: bool,
    with_topics: bool,
    follow: bool,
) -> None:
    """Follow TOPIC... (names or globs such as 'quotes.*') and print readable lines until Ctrl-C.

    It reads the streams, so nothing is missed however slow the terminal is, unless a stream was trimmed meanwhile.
    """
    import redis

    from relay.cli._common import fail
    from relay.opening import opened

    if with_topics and not as_json:
        raise click.UsageError("--topics goes with --json.")
    start = _start_id(since)
    found, prefix, login = (url, "", {}) if url else _url(config)
    try:
        client = opened(found, login)
        _follow(client, prefix, topics, start, _writer(as_json, with_topics), follow)
    except ValueError as error:
        fail(str(error))
    except (redis.exceptions.ConnectionError, redis.exceptions.RedisClusterException) as error:
        fail(f"Redis cannot be reached: {error}. Is the relay running? Name another server with --url.")
    except redis.exceptions.RedisError as error:
        fail(f"Redis refused: {error}")
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our pipe is gone: the ordinary end of `| head`
    except KeyboardInterrupt:
        pass


def _url(config: str) -> tuple[str, str, dict[str, Any]]:
    """The Redis of the config, its prefix, and the login and certificates that the address does not hold.

    For the bundled server it is the address that the running relay left.
    """
    from relay.cli._common import fail, read_config
    from relay.opening import login_of

    if not Path(config).exists():
        return "redis://127.0.0.1:6379", "", {}
    loaded = read_config(config)
    if loaded.redis.url != "embedded":
        return str(loaded.redis.url), str(loaded.redis.prefix), login_of(loaded.redis)
    try:
        return (Path(loaded.state_dir) / "redis_url").read_text().strip(), str(loaded.redis.prefix), {}
    except OSError:
        fail(f"no relay with a bundled server runs here (from {config}); start one, or name a server with --url")


def _start_id(since: str | None) -> str | None:
    """Entry id to start behind; None: now."""
    if since is None:
        return None
    if since == "all":
        return "0-0"
    from relay.times import any_ns

    unit = {"s": 1, "m": 60, "h": 3600, "d": 86_400}.get(since[-1:])
    if unit and since[:-1].replace(".", "", 1).isdecimal():
        ms = int((time.time() - float(since[:-1]) * unit) * 1000)
    else:
        ns = any_ns(since)
        if ns is None:
            raise click.UsageError(f"--since '{since}': give 90s, 10m, 2h, 1d, an ISO time, or all")
        ms = ns // 1_000_000
    return f"{max(ms - 1, 0)}-{2**63}"


def _writer(as_json: bool, with_topics: bool) -> Callable[[bytes, bytes, bytes], bytes]:
    """Make what turns topic, entry id and body into a line."""
    from relay.codec import line_of

    if with_topics:
        return lambda topic, entry_id, body: line_of(topic.decode(), entry_id.decode(), body)
    if as_json:
        return lambda topic, entry_id, body: body + b"\n"
    colour = sys.stdout.isatty()
    return lambda topic, entry_id, body: f"{readable(topic.decode(), body, colour)}\n".encode()


def _follow(
    client: Any,
    prefix: str,
    patterns: Iterable[str],
    start: str | None,
    line_of: Callable[[bytes, bytes, bytes], bytes],
    follow: bool,
) -> None:
    from relay.opening import newer

    patterns = list(patterns)
    last: dict[bytes, str | bytes] = {}
    first, told = True, False
    while True:
        known = [
            topic
            for key in ("relay:topics", "sim.relay:topics", f"{prefix}relay:topics")
            for topic in client.hkeys(key)
            if any(fnmatch.fnmatch(topic.decode(), p) for p in patterns)
        ]
        if first:
            known += [p.encode() for p in patterns if not set(p) & set("*?[")]
        for topic in known:
            if topic not in last:
                # a topic that appears while we follow is read from its beginning
                last[topic] = start or (_last_id(client, topic) if first else "0-0")
        first = False
        if not last:
            if not follow:
                return
            if not told:
                told = True
                print(f"waiting for topics that match {' '.join(patterns)}", file=sys.stderr)
            time.sleep(BLOCK_MS / 1000)
            continue
        found = newer(client, last, READ_COUNT, BLOCK_MS if follow else None)
        lines: list[tuple[bytes, bytes, bytes]] = []
        for topic, chunks in found.items() if isinstance(found, dict) else found:
            entries = chunks[0] if chunks and isinstance(chunks[0], list) else chunks
            for entry_id, fields in entries:
                last[topic] = entry_id
                lines.append((entry_id, topic, fields.get(b"data", b"")))
        lines.sort(key=lambda line: int(line[0].split(b"-")[0]))
        for entry_id, topic, body in lines:
            sys.stdout.buffer.write(line_of(topic, entry_id, body))
        sys.stdout.flush()
        if not lines and not follow:
            return


def _last_id(client: Any, topic: bytes) -> bytes | str:
    entry = client.xrevrange(topic, count=1)
    return entry[0][0] if entry else "0-0"


def readable(topic: str, body: bytes, colour: bool) -> str:
    """One message as one line for people; control characters of foreign text are shown, not obeyed."""
    import msgspec

    try:
        message = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return f"{topic}  not a message: {body[:80]!r}"
    seconds, ns = divmod(message.pop("ts_recv", 0), 1_000_000_000)
    head = f"{time.strftime('%H:%M:%S', time.gmtime(seconds))}.{ns // 1_000_000:03d}"
    kind = message.pop("type", "?")
    origin = message.pop("origin", "")
    for key in ("provider", "run", "seq", "raw_symbol", "symbol", "ts_event", "src_seq", "topic"):
        if not (kind in ("status", "reject") and key in ("provider", "raw_symbol", "topic")):
            message.pop(key, None)
    if kind in ("book_snapshot", "book_delta"):
        for side in ("bids", "asks"):
            levels = message.pop(side, [])
            best = " ".join(f"{size}@{price}" for price, size in levels[:3])
            message[side] = f"{len(levels)} levels {best}"
    words = " ".join(f"{key} {_plain(value)}" for key, value in message.items())
    line = f"{head}  {topic}  {kind if not topic.startswith(kind) else ''} {words}".replace("   ", "  ")
    if origin:
        line += f"  ({origin})"
    if colour and (kind == "status" or kind == "reject"):
        line = click.style(line, fg="yellow" if kind == "status" else "red")
    return line


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)[:300]
