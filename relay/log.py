"""Logs: key=value on a terminal, JSON off it; one redacting processor for every secret, ours and the libraries'.

State changes only, never a line a message. Whatever holds a secret, a URL's user info, or a query value is masked
before it is written.
"""

import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any

import structlog

from relay.redaction import Redactor


class _LibraryHandler(logging.Handler):
    """Brings the libraries' own log lines to our log, redacted and bounded."""

    def __init__(self, log: Any) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()[:500]
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"[:500]
        self._log.log(record.levelno, text, library=record.name)


def configure(
    secrets: Iterable[str] | Redactor = (),
    *,
    level: str = "info",
    form: str = "auto",
    write: Callable[[str], None] | None = None,
) -> Any:
    """Set up logging of this process and give the logger.

    `secrets`: texts, or a redactor that learns more of them at run time.
    `form`: `text`, `json` or `auto` (text on a terminal). `write`: where lines go; standard error by default.
    """
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    redactor = secrets if isinstance(secrets, Redactor) else Redactor(secrets)
    renderer: Any
    if text:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0, pad_level=False)
    else:
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if text else "iso", utc=not text),
            redactor,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=(lambda *_: _Writer(write)) if write else structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    log = structlog.get_logger()
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _LibraryHandler):
            root.removeHandler(handler)
    root.addHandler(_LibraryHandler(log))
    root.setLevel(logging.WARNING if level != "debug" else logging.INFO)
    return log


class _Writer:
    """A structlog logger that hands each finished line to a function."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def msg(self, message: str) -> None:
        self._write(message)

    debug = info = warning = error = critical = fatal = log = msg
