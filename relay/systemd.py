"""IO: tells systemd how we are (sd_notify): one datagram a message to the socket that it names. Elsewhere: nothing.
And the other end, for who starts processes itself and wants to know of one that hangs.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html, read 2026-11-21.
"""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Mapping

import anyio


class Notifier:
    """`watchdog_secs`: how often systemd wants to hear from us; 0: never."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        micros = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self.watchdog_secs = int(micros) / 1e6 if micros.isdecimal() and ours and self._address else 0.0

    def __bool__(self) -> bool:
        return bool(self._address)

    def tell(self, *fields: str) -> None:
        """Send `READY=1`, `STATUS=...` and the like. Never fails: a relay does not end because nobody listens."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(fields).encode(), self._address)

    def reloading(self) -> None:
        """A reload begins; READY=1 ends it."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


class Watchdog:
    """Hears whether a process of ours still turns. Raises OSError where there are no abstract sockets (not Linux)."""

    def __init__(self, secs: float) -> None:
        name = f"relay-{os.getpid()}-{secrets.token_hex(8)}"
        self.secs = secs
        self.environ = {"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": str(int(secs * 1e6))}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        try:
            self._socket.bind("\0" + name)
        except OSError:
            self._socket.close()
            raise

    async def until_silent(self) -> None:
        """Return when nothing has come for `secs`; the first word is waited for as long as it takes."""
        await anyio.wait_readable(self._socket)
        while self._heard():
            with anyio.move_on_after(self.secs):
                await anyio.wait_readable(self._socket)

    def _heard(self) -> bool:
        heard = False
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(4096):
                heard = True
        return heard

    def close(self) -> None:
        self._socket.close()
