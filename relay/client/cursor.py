"""Where a reader stands: topic -> id of the last entry that was handed out, saved and loaded as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path


class Cursor(MutableMapping[str, str]):
    """A mapping topic -> last entry id that `read` moves, just before it hands out each item.

    Save it together with the result of the item (one transaction, or one line of a file), and each id is worked on
    once, whatever is killed and when. It also keeps the `run` of each entry, so that holes are seen across a restart.

        cursor = Cursor.load("prices.cursor")          # empty where there is no such file
        async for item in client.read("quotes.*", cursor=cursor):
            work(item)
            cursor.save("prices.cursor")
    """

    def __init__(self, ids: Mapping[str, str] | None = None) -> None:
        self._places: dict[str, tuple[str, int]] = {topic: (_checked(id), 0) for topic, id in (ids or {}).items()}

    def __getitem__(self, topic: str) -> str:
        return self._places[topic][0]

    def __setitem__(self, topic: str, id: str) -> None:
        self._places[topic] = (_checked(id), 0)

    def __delitem__(self, topic: str) -> None:
        del self._places[topic]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"Cursor({dict(self)!r})"

    def run(self, topic: str) -> int:
        """Give the `run` of a topic's last entry; 0: not known."""
        return self._places[topic][1]

    def move(self, topic: str, id: str, run: int = 0) -> None:
        """Set a topic's place; the reader does this before each item."""
        self._places[topic] = (id, run)

    def to_json(self) -> str:
        """Give it as JSON: `{"<topic>": {"id": "<ms>-<seq>", "run": <ms>}}`."""
        return json.dumps({topic: {"id": id, "run": run} for topic, (id, run) in self._places.items()})

    @classmethod
    def from_json(cls, text: str | bytes) -> Cursor:
        """Read what `to_json` gave, or a plain `{"<topic>": "<id>"}`. Raises: ValueError."""
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("a cursor is a JSON object: topic -> id")
        cursor = cls()
        for topic, place in found.items():
            if isinstance(place, str):
                place = {"id": place}
            if not isinstance(place, dict) or not isinstance(place.get("run", 0), int):
                raise ValueError(f"{topic}: not an entry id: {place!r}")
            cursor._places[topic] = (_checked(place.get("id")), place.get("run", 0))
        return cursor

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, whole or not at all."""
        target = Path(path)
        fresh = target.with_name(f"{target.name}.{os.getpid()}.new")
        fresh.write_text(self.to_json(), encoding="utf-8")
        os.replace(fresh, target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Cursor:
        """Read a file that `save` wrote; an empty cursor where there is none. Raises: ValueError, OSError."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()


def _checked(id: object) -> str:
    if isinstance(id, str):
        ms, _, seq = id.partition("-")
        if ms.isdecimal() and seq.isdecimal():
            return id
    raise ValueError(f"not an entry id, which is <ms>-<seq>: {id!r}")
