"""What a reader gives: items and gaps; and what it raises. Imports nothing at run time, so that it costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from relay.model import Message, Status


class Item(NamedTuple):
    """One message: where it came from, the id of its stream entry, and the struct of `relay.model`."""

    topic: str
    id: str
    message: Message


@dataclass(frozen=True, slots=True)
class Gap:
    """Something is missing in a topic, between `after` and `id`.

    The reader's own reasons: `hole` (numbers are missing in the stream), `trimmed` (the stream was cut before they were
    read; without `missing` it is possible, not certain), `unreadable` (the entry `id` is no message that this version
    knows; it is in `data`). Every other reason is the relay's own notice, which is then in `message`: what the provider
    never sent or the relay could not take. `missing`: how many, where that is known.
    """

    topic: str
    reason: str
    id: str
    after: str | None = None
    missing: int | None = None
    message: Status | None = None
    data: bytes | None = None


class ClientError(Exception):
    """Base of what a reader raises."""


class GapError(ClientError):
    """A gap, where `on_gap="raise"`. The cursor stands behind it: reading on with the same cursor goes on there."""

    def __init__(self, gap: Gap) -> None:
        missing = "" if gap.missing is None else f", {gap.missing} missing"
        super().__init__(f"gap in {gap.topic} before {gap.id}: {gap.reason}{missing}")
        self.gap = gap


class Unreachable(ClientError):
    """No server answered at the first connect. Later losses are mended by themselves and raise nothing."""


class Refused(ClientError):
    """The server refused a login or a command (NOPERM, WRONGPASS, WRONGTYPE ...); its own words are in the text."""
