"""What several commands share: reading the config, failing in one line, reading frames."""

import difflib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

import click


def fail(text: str, code: int = 1) -> NoReturn:
    """End the process with one line on standard error."""
    print(f"relay: {text}", file=sys.stderr)
    raise SystemExit(code)


def usage_near(what: str, given: str, known: Iterable[str]) -> str:
    """Text of a usage error that names the nearest known name."""
    known = list(known)
    near = difflib.get_close_matches(given, known, 1)
    hint = f" Did you mean '{near[0]}'?" if near else f" Known: {', '.join(sorted(known)) or 'none'}."
    return f"No {what} '{given}'.{hint}"


def read_config(path: str) -> Any:
    """Load relay.yaml; on any problem print each with its place and end with exit code 78."""
    from relay.config import load
    from relay.errors import ConfigError
    from relay.providers import PROVIDERS

    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        fail(f"{path}: there is no such file; name one with -c FILE", 78)
    except OSError as error:
        fail(f"{path}: {error.strerror}", 78)
    base = Path(path).resolve().parent

    def read_file(name: str) -> str:
        return (base / name).read_text(encoding="utf-8")

    try:
        return load(text, path, environ=os.environ, read_file=read_file, providers=PROVIDERS)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        count = len(error.problems)
        print(f"relay: {count} error{'s' if count > 1 else ''} in {path}", file=sys.stderr)
        raise SystemExit(ConfigError.exit_code) from None


class InputFrame(NamedTuple):
    """One frame of a frames file."""

    data: bytes
    binary: bool
    t_ns: int | None
    session: tuple[Any, ...]


def frames_input(source: TextIO) -> Iterator[InputFrame]:
    """Read frames: bare lines, or JSON lines with `frame`; `dir: out` lines are skipped."""
    import msgspec

    from relay.times import decimal_seconds_ns

    decoder = msgspec.json.Decoder(float_hook=str)
    for line in source:
        text = line.rstrip("\r\n")
        if not text:
            continue
        wrapped: Any = None
        if text.startswith("{") and '"frame"' in text:
            try:
                wrapped = decoder.decode(text.encode("utf-8", "surrogateescape"))
            except msgspec.DecodeError:
                wrapped = None
        if isinstance(wrapped, Mapping) and isinstance(wrapped.get("frame"), str):
            if wrapped.get("dir") == "out":
                continue
            stamp = wrapped.get("t")
            t_ns = decimal_seconds_ns(str(stamp)) if isinstance(stamp, (str, int)) else None
            session = tuple(wrapped.get(key) for key in ("conn", "scenario", "endpoint"))
            yield InputFrame(
                wrapped["frame"].encode("utf-8", "surrogatepass"), wrapped.get("opcode") == "binary", t_ns, session
            )
        else:
            yield InputFrame(text.encode("utf-8", "surrogateescape"), False, None, ())


def echo_error(text: str) -> None:
    """One line on standard error, coloured on a terminal."""
    click.secho(text, err=True, fg="red" if sys.stderr.isatty() else None)
