"""Takes secrets out of texts: one set of them for a relay's log, its statuses and rejects, its journal.

A secret is found in every spelling in which it can come back: as it is, escaped in JSON (also JSON within JSON),
encoded for a URL, with its blanks folded; and in what is left of it where a text was cut. Secrets that come at run time
are added. Pure; not for the hot path.
"""

import json
import re
from collections.abc import Iterable, MutableMapping
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "***"
SECRET_CHARS_MIN = 4
"""Shorter "secrets" would mask ordinary words."""
START_CHARS = 12
"""So much of a secret's beginning gives it away; what follows is masked as far as it agrees."""
CUT_CHARS_MIN = 6
"""A text that ends with so many first characters of a secret was cut within it."""
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"(?i)\b(api_?key|key|token|secret|password|signature|authorization)=([^&\s'\"]+)")


class Redactor:
    """Masks registered secrets, user info of URLs and secret-looking query values in any text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._known: set[str] = set()
        self._spellings: list[str] = []
        self._starts: re.Pattern[str] | None = None
        self._start_bytes: tuple[bytes, ...] = ()
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Register more secrets; those known already cost nothing."""
        fresh = {secret for secret in secrets if len(secret) >= SECRET_CHARS_MIN} - self._known
        if not fresh:
            return
        self._known |= fresh
        found = {spelling for secret in self._known for spelling in spellings(secret)}
        self._spellings = sorted(found, key=len, reverse=True)
        starts = sorted({spelling[:START_CHARS] for spelling in found}, key=len, reverse=True)
        self._starts = re.compile("|".join(map(re.escape, starts)))
        self._start_bytes = tuple(start.encode("utf-8", "replace") for start in starts)

    def text(self, text: str) -> str:
        """Give the text without secrets."""
        text = self.known(text)
        if "://" in text:
            text = _USERINFO.sub(MASK + "@", text)
        if "=" in text:
            text = _QUERY.sub(rf"\1={MASK}", text)
        return text

    def data(self, data: bytes) -> bytes:
        """Give a frame without registered secrets; byte for byte the same where it holds none."""
        if not self.finds(data):
            return data
        return self.known(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    def finds(self, data: bytes) -> bool:
        """Tell whether there may be a secret in some bytes; fast."""
        # a few fast searches; one for an alternation would be slow
        return any(start in data for start in self._start_bytes)

    def tree(self, value: Any) -> Any:
        """Give a JSON-like value without registered secrets in any of its texts."""
        if isinstance(value, str):
            return self.known(value)
        if isinstance(value, dict):
            return {self.tree(key): self.tree(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.tree(item) for item in value]
        return value

    def known(self, text: str) -> str:
        """Give the text without registered secrets; what only looks like one stays."""
        if self._starts is None:
            return text
        parts: list[str] = []
        position = 0
        while match := self._starts.search(text, position):
            start = match.start()
            # the whole of a short secret, or as much as follows of a long one
            end = max(start + _agreeing(spelling, text, start) for spelling in self._spellings)
            parts += (text[position:start], MASK)
            position = end
        rest = text[position:]
        cut = max((_cut(spelling, rest) for spelling in self._spellings), default=0)
        parts += (rest[:-cut], MASK) if cut else (rest,)
        return "".join(parts)

    def value(self, value: Any) -> Any:
        """As `text`, for whatever a log line carries."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, (int, float, bool)) or value is None:
            return value
        return self.text(str(value))

    def __call__(self, logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Work as a structlog processor."""
        return {key: self.value(value) for key, value in event.items()}


def spellings(secret: str) -> set[str]:
    """Give the forms in which a secret may stand in a text."""
    found = {secret, " ".join(secret.split()), repr(secret)[1:-1]}
    for ascii_only in (True, False):
        once = json.dumps(secret, ensure_ascii=ascii_only)[1:-1]
        found |= {once, json.dumps(once, ensure_ascii=ascii_only)[1:-1], once.replace("/", "\\/")}
    text = secret.encode("utf-8", "replace")
    found |= {quote(text), quote(text, safe=""), quote_plus(text), quote(text, safe="/:?=&+")}
    return {one for one in found if len(one) >= SECRET_CHARS_MIN}


def _agreeing(spelling: str, text: str, start: int) -> int:
    """Count how much of a spelling stands at a place; 0 where it is less than its beginning."""
    if text.startswith(spelling, start):
        return len(spelling)
    if len(spelling) <= START_CHARS or not text.startswith(spelling[:START_CHARS], start):
        return 0
    count = START_CHARS
    while start + count < len(text) and count < len(spelling) and text[start + count] == spelling[count]:
        count += 1
    return count


def _cut(spelling: str, text: str) -> int:
    """Count the characters at the end of a text that are the beginning of a spelling."""
    for count in range(min(len(spelling) - 1, START_CHARS - 1), CUT_CHARS_MIN - 1, -1):
        if text.endswith(spelling[:count]):
            return count
    return 0
