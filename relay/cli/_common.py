"""What several commands share: reading the config, failing in one line, reading frames."""

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TextIO

if TYPE_CHECKING:
    from relay.config import Config
    from relay.providers.base import ProviderSpec


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


def read_config(path: str) -> "Config":
    """Load relay.yaml; on any problem print each with its place and end with exit code 78."""
    from relay.cli._config import load_config
    from relay.errors import ConfigError

    try:
        return load_config(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        count = len(error.problems)
        print(f"relay: {count} error{'s' if count > 1 else ''} in {path}", file=sys.stderr)
        raise SystemExit(ConfigError.exit_code) from None


def plain_options(spec: "ProviderSpec") -> Any:
    """Give options for frames that are here already: no key is needed for them, whatever the provider wants of one."""
    from relay.secrecy import secret_options

    keys: dict[str, Any] = {name: "unused" for name in secret_options(spec.options) if name.endswith("key")}
    return spec.options(simulate=True, **keys)


class InputFrame(NamedTuple):
    """One frame of a frames file."""

    data: bytes
    binary: bool
    t_ns: int | None
    session: tuple[Any, ...]
    sent: bool = False
    """A client sent it (`dir: out`): no frame to normalize, but answers may be understood by it."""


def frames_input(source: TextIO, *, both: bool = False) -> Iterator[InputFrame]:
    """Read frames: bare lines, or JSON lines with `frame`; `dir: out` lines only where `both` directions are wanted."""
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
            if wrapped.get("dir") == "out" and not both:
                continue
            stamp = wrapped.get("t")
            t_ns = decimal_seconds_ns(str(stamp)) if isinstance(stamp, (str, int)) else None
            session = tuple(wrapped.get(key) for key in ("conn", "scenario", "endpoint"))
            data, binary = wrapped["frame"].encode("utf-8", "surrogatepass"), wrapped.get("opcode") == "binary"
            yield InputFrame(data, binary, t_ns, session, wrapped.get("dir") == "out")
        else:
            yield InputFrame(text.encode("utf-8", "surrogateescape"), False, None, ())
