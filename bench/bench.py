"""What the README claims about speed, as commands: `python bench/bench.py throughput | latency | topics | connections |
idle | scrape | shards`.

Each starts a Redis of its own (redis-server on the PATH), a server that plays CoinAPI, and `relay run` as a user would;
prints a table and leaves the figures in bench/results/<command>.json. Loopback only. Compare figures of one run with
one another, never of two machines.
"""

import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
TICK = os.sysconf("SC_CLK_TCK")
START_SECS = 20.0
MESSAGES = int(os.environ.get("BENCH_MESSAGES", 150_000))
WANTED = {"trade": "trades: ['BINANCE_SPOT_*']", "book20": "books: {20: ['BINANCE_SPOT_*']}"}
TEMPLATES = ", ".join(f"{channel}: '{channel}.{{provider}}.{{symbol}}'" for channel in ("trades", "books"))
BOOK_SHARE = 9
"""So many trades cost about what a book of 20 levels costs."""
LOOK_SECS = 0.02
"""Between two looks at what shards have stored: each costs half a millisecond, of a machine that is full already."""


def port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def cpu_secs(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory_mb(pid: int, what: str = "VmRSS") -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    return 0.0


@contextlib.contextmanager
def running(*args: str, **popen: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a program while inside."""
    process = subprocess.Popen(args, text=True, **popen)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Scene:
    """A Redis, players and a relay; `stored` counts what Redis has."""

    def __init__(self, client: "redis.Redis[bytes]", relay: subprocess.Popen[str], log: Path, http: str) -> None:
        self.client, self.relay, self.log, self.http = client, relay, log, http

    def pids(self) -> list[int]:
        """The relay's processes: itself, and its shards where it supervises some."""
        pid = self.relay.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def cpu_secs(self) -> float:
        return sum(map(cpu_secs, self.pids()))

    def stored(self) -> int:
        found: Any = self.client.info("commandstats").get("cmdstat_xadd", {})
        return int(found.get("calls", 0)) - int(found.get("failed_calls", 0))

    def until(self, count: int, secs: float = 120.0, look_secs: float = 0.002) -> float:
        """Wait until so many entries are stored, looking so often; give the moment."""
        end = time.time() + secs
        while self.stored() < count:
            if time.time() > end or self.relay.poll() is not None:
                sys.exit(f"only {self.stored()} of {count} stored; the relay said:\n{self.log.read_text()[-3000:]}")
            time.sleep(look_secs)
        return time.time()


@contextlib.contextmanager
def scene(
    *,
    count: int = 0,
    symbols: int = 50,
    rate: float = 0.0,
    connections: int = 1,
    config: str = "",
    providers: str = "",
    names: tuple[str, ...] = (),
    args: tuple[str, ...] = (),
    kind: str = "trade",
) -> Iterator[Scene]:
    """Bring everything up; the players begin half a second after the relay has connected.

    `names`: of the providers, one a connection, all of one player. `args`: more for `relay run`. `kind`: trade or
    book20.
    """
    if not shutil.which("redis-server"):
        sys.exit("needs redis-server on the PATH (Debian: apt install redis-server)")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
        redis_port = port()
        quiet = {"stdout": subprocess.DEVNULL}
        stack.enter_context(
            running("redis-server", "--port", str(redis_port), "--save", "", "--appendonly", "no", **quiet)
        )
        sections = providers
        players = [names] if names else [(f"p{number}",) for number in range(0 if providers else connections)]
        for served in players:
            ws = port()
            blaster = stack.enter_context(
                running(
                    sys.executable,
                    str(HERE / "blast.py"),
                    str(ws),
                    str(count),
                    str(symbols),
                    str(rate),
                    kind,
                    stdout=subprocess.PIPE,
                )  # fmt: skip
            )
            assert blaster.stdout is not None and blaster.stdout.readline().strip() == "listening"
            # each its own key and, by a prefix of the provider's name, its own topics
            for name in served:
                sections += (
                    f"  {name}: {{type: coinapi, url: 'ws://127.0.0.1:{ws}/v1/', api_key: bench-key-{name}, "
                    f"{WANTED[kind]}, topics_max: 20000}}\n"
                )
        connections = max(connections, len(names))
        template = f"topics: {{{TEMPLATES}}}\n" if connections > 1 else ""
        file = folder / "relay.yaml"
        file.write_text(
            f"name: bench\nredis: {{url: 'redis://127.0.0.1:{redis_port}'}}\n{template}{config}providers:\n{sections}"
        )
        log = folder / "log"
        with log.open("w") as out:
            relay = stack.enter_context(
                running(sys.executable, "-m", "relay", "run", "-c", str(file), *args, cwd=folder,
                        stdout=out, stderr=out, env=os.environ | {"PYTHONPATH": str(HERE.parent)})
            )  # fmt: skip
        client = redis.Redis(port=redis_port)
        stack.callback(client.close)
        end = time.time() + START_SECS
        while log.read_text().count('"connected"') < connections and not providers:
            if time.time() > end or relay.poll() is not None:
                sys.exit(f"the relay does not connect:\n{log.read_text()[-3000:]}")
            time.sleep(0.02)
        http = folder / ".relay" / "http_url"
        yield Scene(client, relay, log, http.read_text().strip() if http.exists() else "")


def flow(
    *, symbols: int = 50, connections: int = 1, count: int = MESSAGES, whole: bool = False, **more: Any
) -> dict[str, float]:
    """Rate, CPU and memory of a full flow, the first part (making topics) left out unless `whole`."""
    each = count // connections
    warm = 1 if whole else max(min(symbols * connections, count // 2), count // 10)
    with scene(count=each, symbols=symbols, connections=connections, **more) as stage:
        stop = threading.Event()
        if stage.http:
            threading.Thread(target=scraping, args=(stage.http, stop), daemon=True).start()
        pid = stage.relay.pid
        start = cpu_secs(pid)
        stage.until(warm)
        had, before, begun = (0, start, time.time()) if whole else (stage.stored(), cpu_secs(pid), time.time())
        ended = stage.until(each * connections)
        done, cpu = each * connections - had, cpu_secs(pid) - before
        stop.set()
        return {
            "messages_per_second": done / (ended - begun),
            "cpu_us_per_message": cpu / done * 1e6,
            "memory_mb": memory_mb(pid),
            "memory_peak_mb": memory_mb(pid, "VmHWM"),
        }


def scraping(url: str, stop: threading.Event) -> None:
    while not stop.wait(1.0):
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            answer.read()


def median_of(rounds: int, **what: Any) -> dict[str, float]:
    found = [flow(**what) for _ in range(rounds)]
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def throughput() -> list[dict[str, Any]]:
    """Messages a second from frames to Redis: 50 topics, one connection."""
    return [{"topics": 50} | median_of(3)]


def topics() -> list[dict[str, Any]]:
    """The same over 10, 100, 1,000 and 10,000 topics."""
    return [{"topics": n} | median_of(3, symbols=n) for n in (10, 100, 1_000, 10_000)]


def connections() -> list[dict[str, Any]]:
    """The same over 1, 4 and 16 connections."""
    return [{"connections": n} | median_of(3, connections=n, whole=True) for n in (1, 4, 16)]


def scrape() -> list[dict[str, Any]]:
    """The same with the HTTP server off, and on with a scrape each second, in turns."""
    on = "http: {enabled: true, port: 0}\n"
    found: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
    for _ in range(5):
        found["off"].append(flow(count=2 * MESSAGES))
        found["on"].append(flow(count=2 * MESSAGES, config=on))
    return [
        {"scraping": how} | {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for how, rounds in found.items()
    ]


def latency() -> list[dict[str, Any]]:
    """From a frame's sending to its reading by XREAD BLOCK, by messages a second; the first 1.5 s left out."""
    return [{"rate": rate} | _latency(rate) for rate in (100, 1_000, 10_000)]


def _latency(rate: int, secs: float = 8.0) -> dict[str, float]:
    count = int(rate * secs)
    with scene(count=count, symbols=50, rate=rate) as stage:
        keys = {f"trades.C{number:05d}-USDT": "0" for number in range(50)}
        took: list[float] = []
        seen, first = 0, 0
        end = time.time() + secs + 10
        while seen < count and time.time() < end:
            found: Any = stage.client.xread(keys, block=200)
            now = time.time_ns()
            for name, entries in found.items() if isinstance(found, dict) else found or ():
                keys[name.decode()] = entries[-1][0]
                for _, fields in entries:
                    body = json.loads(fields[b"data"])
                    if body["type"] != "trade":
                        continue
                    seen += 1
                    sent = int(body["id"])
                    first = first or sent
                    if sent - first > 1_500_000_000:
                        took.append((now - sent) / 1e6)
        took.sort()
        return {
            "p50_ms": took[len(took) // 2],
            "p99_ms": took[int(len(took) * 0.99)],
            "max_ms": took[-1],
            "arrived": seen,
            "sent": count,
        }


def idle(secs: float = 20.0) -> list[dict[str, Any]]:
    """CPU of a relay with four connected providers of which none says anything but heartbeats."""
    names = {
        "coinapi": "trades: [BITSTAMP_SPOT_BTC_EUR]",
        "coinbase": "trades: [BTC-USD]",
        "tickatlas": "quotes: [EURUSD]",
        "aries": "quotes: [AAPL]",
    }
    with running(
        sys.executable, "-m", "relay", "sim", *names, "--rate", "0.0001", "--port", str(ws := port()),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(HERE.parent)},
    ):  # fmt: skip
        sections = ""
        for name, what in names.items():
            key = {"aries": "token: bench-key, ", "coinbase": ""}.get(name, "api_key: bench-key, ")
            sections += f"  {name}: {{url: 'ws://127.0.0.1:{ws}/{name}', {key}{what}}}\n"
        with scene(providers=sections) as stage:
            end = time.time() + START_SECS
            while stage.log.read_text().count('"connected"') < len(names):
                if time.time() > end:
                    sys.exit(f"not all connect:\n{stage.log.read_text()[-3000:]}")
                time.sleep(0.1)
            time.sleep(3.0)
            before, began = cpu_secs(stage.relay.pid), time.time()
            time.sleep(secs)
            share = (cpu_secs(stage.relay.pid) - before) / (time.time() - began)
            return [{"providers": len(names), "cpu_percent": share * 100, "memory_mb": memory_mb(stage.relay.pid)}]


def shards() -> list[dict[str, Any]]:
    """Two connections in one process, and in two (`--shards 2`), in turns; where the CPU of this machine went.

    Of trades, and of books of 20 levels: with these the server has less to do for what the relay does.
    """
    sys.path.insert(0, str(HERE.parent))
    from relay.shards import home

    # a provider of one connection is on one shard: names that are dealt to different ones
    first = next(f"a{number}" for number in range(99) if home(f"provider a{number}", 2) == 1)
    second = next(f"b{number}" for number in range(99) if home(f"provider b{number}", 2) == 2)
    return [row for kind in WANTED for row in _one_and_two((first, second), kind)]


def _one_and_two(names: tuple[str, str], kind: str) -> list[dict[str, Any]]:
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    _shared(names, (), kind)  # the first run after something else is slower than all others
    for _ in range(5):
        for count, rounds in found.items():
            rounds.append(_shared(names, ("--shards", str(count)) if count > 1 else (), kind))
    rows: list[dict[str, Any]] = [
        {"of": kind, "processes": count} | {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for count, rounds in found.items()
    ]
    one, two = rows
    for row in rows:
        row["speed"] = row["messages_per_second"] / one["messages_per_second"]
        row["cpu"] = row["cpu_us_per_message"] / one["cpu_us_per_message"]
    pairs = list(zip(found[1], found[2], strict=True))
    two["speed_worst"] = min(b["messages_per_second"] / a["messages_per_second"] for a, b in pairs)
    one["speed_worst"] = 1.0
    return rows


def _shared(names: tuple[str, ...], args: tuple[str, ...], kind: str) -> dict[str, float]:
    """One flow over these providers; the first fifth, in which topics are made and processes warm up, left out."""
    each = 2 * MESSAGES // (1 if kind == "trade" else BOOK_SHARE)
    with scene(count=each, names=names, args=args, kind=kind) as stage:
        total = each * len(names)
        server = int(stage.client.info("server")["process_id"])
        stage.until(total // 5, look_secs=LOOK_SECS)
        had, begun = stage.stored(), time.time()
        cpu, redis_cpu, busy = stage.cpu_secs(), cpu_secs(server), _busy_secs()
        # up to nine tenths: towards the end one connection has nothing more while the other one still has
        ended = stage.until(total * 9 // 10, look_secs=LOOK_SECS)
        done, secs = stage.stored() - had, ended - begun
        cores = os.cpu_count() or 1
        relay_share = (stage.cpu_secs() - cpu) / secs
        redis_share = (cpu_secs(server) - redis_cpu) / secs
        machine = (_busy_secs() - busy) / secs
        stage.until(total)
        return {
            "messages_per_second": done / secs,
            "cpu_us_per_message": relay_share * secs / done * 1e6,
            "relay_percent": relay_share * 100,
            "redis_percent": redis_share * 100,
            "machine_percent_of_all_cores": machine / cores * 100,
            "memory_mb": sum(map(memory_mb, stage.pids())),
        }


def _busy_secs() -> float:
    """CPU time that all of this machine has used."""
    fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / TICK


COMMANDS = {f.__name__: f for f in (throughput, latency, topics, connections, idle, scrape, shards)}


def table(rows: list[dict[str, Any]]) -> str:
    def text(value: Any) -> str:
        return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"

    head = list(rows[0])
    cells = [head, *([text(row[key]) for key in head] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def main() -> None:
    chosen = sys.argv[1:]
    if not chosen or set(chosen) - set(COMMANDS):
        sys.exit(f"usage: bench.py {' | '.join(COMMANDS)}")
    RESULTS.mkdir(exist_ok=True)
    for name in chosen:
        function = COMMANDS[name]
        rows = function()
        print(f"{name}: {(function.__doc__ or '').strip()}\n{table(rows)}\n", flush=True)
        about = {"machine": f"{os.cpu_count()} cores", "python": platform.python_version(), "rows": rows}
        (RESULTS / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
