"""IO: what providers keep between runs (instrument lists, a rotated token), a file each that the owner alone reads."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from relay.providers.base import Shared


class StateFiles:
    """The files of one relay. `event(level, text, **fields)` is told what goes wrong."""

    def __init__(self, state_dir: str, event: Callable[..., None], whole: Mapping[str, str] | None = None) -> None:
        """`whole`: another state folder, for the providers whose state does not belong to this process alone."""
        self._folder, self._whole, self._event = state_dir, whole or {}, event
        self._saved: dict[str, bytes] = {}

    def _path(self, name: str) -> Path:
        return Path(self._whole.get(name, self._folder), "providers", f"{name}.json")

    def load(self, name: str, shared: Shared) -> None:
        """Give a provider back what it kept; what cannot be read is said and not used."""
        load = getattr(shared, "load_state", None)
        if load is None:
            return
        path = self._path(name)
        try:
            load(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._event("warning", "saved state not used", provider=name, path=str(path), why=error)

    def save(self, name: str, shared: Shared) -> None:
        """Write a provider's state where it changed; mode 600, replaced whole, on the disk when this returns."""
        state = getattr(shared, "state", None)
        if state is None or not getattr(shared, "changed", True):
            return
        body = msgspec.json.encode(state())
        if body == self._saved.get(name):
            return
        path = self._path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh = path.with_suffix(".new")
            fresh.unlink(missing_ok=True)  # left by a crash: it would keep its own mode
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(body)
                out.flush()
                os.fsync(out.fileno())
            fresh.replace(path)
        except OSError as error:
            # told once a state: what it holds now would be lost with the process
            self._event("error", "state cannot be saved", provider=name, path=str(path), why=error.strerror)
        self._saved[name] = body
