"""`relay normalize`: raw frames in, one JSON line a message out."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import click


@click.command(
    epilog="""Examples:

\b
  relay normalize coinapi frames.jsonl
  websocat wss://... | relay normalize coinbase - | jq .price""",
)
@click.argument("provider")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@click.option(
    "-c", "--config", type=click.Path(dir_okay=False), help="Take the provider's options from this relay.yaml."
)
@click.option("--topics", is_flag=True, help="Print {topic, id, message} instead of the bare message.")
def command(provider: str, file: str, config: str | None, topics: bool) -> None:
    """Turn raw frames of PROVIDER into messages, one JSON line each, without Redis.

    FILE holds one frame a line, or JSON lines with `frame` (text) and optional `opcode` (`binary`), `t` (unix
    seconds, the time of receipt) and `dir` (`out`: what a client sent; the answers to it are understood by it). `-`
    reads standard input. A change of `conn`, `scenario` or `endpoint` starts a new session, as does a session that
    ended, which is printed as such. Without -c every symbol counts as subscribed.
    """
    from relay.cli._common import fail, frames_input, plain_options, usage_near
    from relay.normalizer import Normalizer
    from relay.providers import PROVIDERS

    if config is not None:
        from relay.cli._common import read_config
        from relay.config import secrets_of
        from relay.redaction import Redactor

        loaded = read_config(config)
        if provider not in loaded.providers:
            raise click.UsageError(usage_near("provider", provider, loaded.providers))
        section = loaded.providers[provider]
        normalizer = Normalizer(
            section.spec,
            section.options,
            section.subscriptions,
            name=provider,
            account=section.account,
            redactor=Redactor(secrets_of(loaded)),
        )
    else:
        if provider not in PROVIDERS:
            raise click.UsageError(usage_near("provider", provider, PROVIDERS))
        spec = PROVIDERS[provider]
        normalizer = Normalizer(spec, plain_options(spec), None, name=provider)
    try:
        source: TextIO = sys.stdin if file == "-" else open(file, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    with source:
        for text in _lines(normalizer, frames_input(source, both=True), topics):
            click.echo(text)
    print(
        f"{normalizer.frames} frames, {normalizer.source.counts.published} messages, "
        f"{normalizer.source.counts.rejects} rejects",
        file=sys.stderr,
    )


def _lines(normalizer: Any, frames: Iterator[Any], topics: bool) -> Iterator[bytes]:
    import msgspec

    session: object = None
    now = time.time_ns()  # where the frames carry no time of their own
    for frame in frames:
        now = frame.t_ns if frame.t_ns is not None else now
        out = []
        if frame.session != session:
            out += normalizer.close(now)
            session = frame.session
        if frame.sent:
            yield from _written(out + normalizer.overheard(frame.data, now), topics)
            continue
        entries, error = normalizer.frame(frame.data, now, binary=frame.binary)
        yield from _written(out + entries, topics)
        if error is not None:
            ended = {"type": "session_ended", "action": error.action, "code": error.code, "text": error.text}
            yield msgspec.json.encode(ended)
    yield from _written(normalizer.close(now), topics)


def _written(entries: Iterable[Any], topics: bool) -> Iterator[bytes]:
    import msgspec

    for entry in entries:
        if topics:
            yield msgspec.json.encode({"topic": entry.topic, "id": entry.id, "message": msgspec.Raw(entry.body)})
        elif not _is_copy(entry):
            yield entry.body


def _is_copy(entry: Any) -> bool:
    """An in-band status has a copy on the status topic; without topics shown one is enough."""
    return entry.topic.startswith("status.") and b'"topic":' in entry.body and b'"type":"status"' in entry.body
