"""Reading from a service under Sentinel: each connect goes to the primary of that moment, and a demoted one is left.

`Guide` decides, without a socket; the two drivers carry its questions to the sentinels.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from relay.client.items import Refused
from relay.client.steps import Lost
from relay.client.wires import SyncWires, Wires, connect, connect_sync, drop, exchange, exchange_sync, translate
from relay.targets import Host, Target, shown

ASK_SECS = 0.5
"""A sentinel that needs longer is asked last from then on."""
WATCH_SECS = 2.0
"""While connected one of the sentinels is asked this often, in turn."""
ELSEWHERE = "the sentinels name another primary"


class Guide:
    """Whom to ask and what to believe: the newest failover that a sentinel knew of (its config epoch)."""

    def __init__(self, target: Target, username: str, password: str) -> None:
        self.target = target
        login = {"username": username, "password": password}
        self.login = {name: value for name, value in login.items() if value}
        self.order = list(target.hosts)
        self.questions = [("SENTINEL", word, target.service) for word in ("GET-MASTER-ADDR-BY-NAME", "MASTER")]
        self.primary: Host | None = None
        """Where the connections go."""
        self.watch_at = 0.0
        self._epoch = 0
        self._stale: Host | None = None
        self._said: list[str] = []

    def begin(self) -> list[Host]:
        """Ask anew; give the sentinels in the order in which to ask them."""
        self._stale, self._said = None, []
        return [*self.order]

    def heard(self, host: Host, replies: list[Any]) -> Host | None:
        """Read an answer; None where it helps nobody."""
        address, about = replies
        if isinstance(address, Exception) or not address:
            self.silent(host, address or f"monitors no service {self.target.service!r}")
            return None
        fields = dict(zip(about[::2], about[1::2], strict=False)) if isinstance(about, list) else {}
        epoch = int(fields.get(b"config-epoch", b"0"))
        found = (address[0].decode(), int(address[1]))
        if epoch < self._epoch:  # it missed a failover
            self._stale = self._stale or found
            self._said.append(f"{shown(host)}: is behind the others")
            return None
        self._epoch = epoch
        return found

    def silent(self, host: Host, why: object) -> None:
        """Take note of a sentinel that gave no answer."""
        self._said.append(f"{shown(host)}: {why}")
        self.order.remove(host)
        self.order.append(host)

    def ended(self) -> Host:
        """Give what is left when all were asked: an old answer is better than none. Raises: Lost."""
        if self._stale is None:
            raise Lost(f"no sentinel tells who the primary is ({'; '.join(self._said)})")
        self._epoch = 0  # all of them begin again
        return self._stale

    def due(self) -> Host | None:
        """Give the sentinel to ask now, while connected, if it is time."""
        now = time.monotonic()
        if self.primary is None or now < self.watch_at:
            return None
        self.watch_at = now + WATCH_SECS
        self._stale, self._said = None, []
        self.order.append(self.order.pop(0))
        return self.order[-1]

    def went(self, primary: Host, first: bool) -> str:
        """Take note of where a connection goes; give its address. Raises: Lost where the other one goes elsewhere."""
        if not first and primary != self.primary:
            raise Lost(ELSEWHERE)
        self.primary, self.watch_at = primary, time.monotonic() + WATCH_SECS
        return self.target.at(primary)

    def asking(self, host: Host) -> str:
        """Give the address of a sentinel."""
        return f"{self.target.scheme}://{shown(host)}"

    def of_servers(self, options: dict[str, Any]) -> dict[str, Any]:
        """Give the options for the servers: the address's login, where they have none."""
        login = {"username": self.target.username, "password": self.target.password}
        return {**{name: value for name, value in login.items() if value}, **options}

    def of_sentinels(self, options: dict[str, Any]) -> dict[str, Any]:
        """Give the options for the sentinels: those of the servers but for the login."""
        return {
            **{name: value for name, value in options.items() if name not in ("username", "password")},
            **self.login,
        }


class SentinelWires(Wires):
    """`Wires` to the primary of a service."""

    def __init__(self, guide: Guide, options: dict[str, Any], connect_secs: float) -> None:
        super().__init__(guide.target.shown, guide.of_servers(options), connect_secs)
        self._guide, self._asking = guide, guide.of_sentinels(options)

    async def _open(self) -> Any:
        try:
            url = self._guide.went(await self._primary(), self._commands is None)
            connection = await connect(url, self._options, ASK_SECS * 10)
            try:
                await self._check(connection)
            except BaseException:
                await drop(connection)
                raise
            return connection
        except Exception as error:
            raise self._failed(error) from error

    async def _check(self, connection: Any) -> None:
        (role,) = await exchange(connection, [("ROLE",)], ASK_SECS * 10)
        _is_primary(role)

    async def _primary(self) -> Any:
        guide = self._guide
        for host in guide.begin():
            found = await self._ask(host)
            if found is not None:
                return found
        return guide.ended()

    async def _ask(self, host: Host) -> Host | None:
        guide, connection = self._guide, None
        try:
            connection = await connect(guide.asking(host), self._asking, ASK_SECS)
            return guide.heard(host, await exchange(connection, guide.questions, ASK_SECS))
        except Exception as error:
            guide.silent(host, _why(error))
            return None
        finally:
            if connection is not None:
                await drop(connection)

    async def _exchange(self, commands: Any, wait: float) -> list[Any]:
        host = self._guide.due()
        if host is not None and (await self._ask(host) or self._guide.primary) != self._guide.primary:
            raise self._failed(Lost(ELSEWHERE))
        return await super()._exchange(commands, wait)


class SyncSentinelWires(SyncWires):
    """The twin of `SentinelWires`, step for step."""

    def __init__(self, guide: Guide, options: dict[str, Any], connect_secs: float) -> None:
        super().__init__(guide.target.shown, guide.of_servers(options), connect_secs)
        self._guide, self._asking = guide, guide.of_sentinels(options)

    def _open(self) -> Any:
        try:
            url = self._guide.went(self._primary(), self._commands is None)
            connection = connect_sync(url, self._options, ASK_SECS * 10)
            try:
                (role,) = exchange_sync(connection, [("ROLE",)], ASK_SECS * 10)
                _is_primary(role)
            except BaseException:
                connection.disconnect()
                raise
            return connection
        except Exception as error:
            raise self._failed(error) from error

    def _primary(self) -> Any:
        guide = self._guide
        for host in guide.begin():
            found = self._ask(host)
            if found is not None:
                return found
        return guide.ended()

    def _ask(self, host: Host) -> Host | None:
        guide, connection = self._guide, None
        try:
            connection = connect_sync(guide.asking(host), self._asking, ASK_SECS)
            return guide.heard(host, exchange_sync(connection, guide.questions, ASK_SECS))
        except Exception as error:
            guide.silent(host, _why(error))
            return None
        finally:
            if connection is not None:
                with contextlib.suppress(Exception):
                    connection.disconnect()

    def _exchange(self, commands: Any, wait: float) -> list[Any]:
        host = self._guide.due()
        if host is not None and (self._ask(host) or self._guide.primary) != self._guide.primary:
            raise self._failed(Lost(ELSEWHERE))
        return super()._exchange(commands, wait)


def _is_primary(role: Any) -> None:
    """Raises: Lost where a replica answers. A reader that may not ask goes without."""
    if not isinstance(role, Refused) and role[0] != b"master":
        raise Lost("the server that the sentinels name as the primary is none")


def _why(error: Exception) -> str:
    return str(translate(error))
