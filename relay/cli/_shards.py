"""One shard's part of `relay run --shard`, and the supervisor of `--shards`, as the command line has them."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from relay import __version__
from relay.cli._common import fail
from relay.cli._config import load_config
from relay.config import EMBEDDED, Config, prefix_of, secrets_of
from relay.errors import ConfigError, Problem, RelayError
from relay.held import VARIABLE, Held
from relay.log import configure
from relay.redaction import Redactor
from relay.reload import compare
from relay.shards import deal, name_of, sharded, topics_by_shard
from relay.systemd import Notifier

if TYPE_CHECKING:
    from relay.supervisor import Supervisor

PR_SET_PDEATHSIG = 1
STATUS_SECS = 5.0
"""How often the status line of systemd is looked at."""


def loop_options() -> dict[str, Any]:
    """Give the options of anyio's backend: a faster event loop, where there is one."""
    try:
        import uvloop
    except ImportError:
        return {}
    return {"loop_factory": uvloop.new_event_loop}


def held() -> Held | None:
    """Give what the supervisor that started us holds, and see to it that we end with it; None: nobody did."""
    text = os.environ.pop(VARIABLE, "")
    if not text:
        return None
    found = msgspec.json.decode(text, type=Held)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != found.supervisor:  # it died before we asked
        raise SystemExit(1)
    return found


def part(config: Config, number: int, count: int, held: Held | None, file: str) -> Config:
    """Give what one shard runs. Raises: ConfigError."""
    if held is None and config.redis.url == EMBEDDED:
        text = f"one embedded server cannot be shared between hosts; name one that all reach, or use --shards {count}"
        raise ConfigError([Problem(file, 0, 0, "redis.url", text)])
    found = sharded(config, number, count, file)
    if held is None:
        return found
    # asked by the supervisor alone, which serves the configured address
    http = msgspec.structs.replace(found.http, host="127.0.0.1", port=0, hosts=())
    return msgspec.structs.replace(found, http=http)


def run_supervised(
    config: Config, file: str, count: int, more: Sequence[str], level: str | None, form: str | None
) -> None:
    """Run all shards on this host until a signal; `more`: options that each of them gets."""
    if file == "-":
        fail("--shards cannot read the config from standard input, each shard reads it; give a file with -c", 2)
    try:
        sharded(config, 1, count, file)
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(ConfigError.exit_code) from None
    try:
        anyio.run(
            partial(_run, config, file, count, more, level, form), backend="asyncio", backend_options=loop_options()
        )
    except RelayError as error:
        fail(str(error))


async def _run(config: Config, file: str, count: int, more: Sequence[str], level: str | None, form: str | None) -> None:
    from relay.supervisor import Supervisor

    redactor = Redactor(secrets_of(config))
    log: Any = None
    text = (form or config.log.format) == "text" or ((form or config.log.format) == "auto" and sys.stderr.isatty())

    def write(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def logged(config: Config) -> None:
        nonlocal log
        log = configure(redactor, level=level or config.log.level, form=form or config.log.format, write=write)

    def event(level: str, text: str, **fields: Any) -> None:
        getattr(log, level)(text, **fields)

    def command(number: int) -> list[str]:
        told = ["--log-level", level] if level else []
        told += ["--log-format", "text" if text else "json"]
        return [sys.executable, "-m", "relay", "run", "-c", file, "--shard", f"{number}/{count}", *told, *more]

    def reread() -> bool:
        """Look whether the shards may read the config again."""
        nonlocal config
        try:
            loaded = load_config(file)
            compare(config, loaded, file)
            old, new = deal(config, count), deal(loaded, count)
            for number in range(1, count + 1):  # what one of them would refuse is refused for all
                before, after = sharded(config, number, count, file, old), sharded(loaded, number, count, file, new)
                compare(before, after, file)
        except ConfigError as error:
            for problem in error.problems:
                event("error", "configuration refused, the old one stays", why=str(problem))
            return False
        config = loaded
        redactor.add(secrets_of(config))
        logged(config)
        return True

    logged(config)
    for warning in config.warnings:
        event("warning", str(warning))
    notifier = Notifier()
    supervisor = Supervisor(config, count, command, event, write)
    async with supervisor.started():
        for row in banner(supervisor):
            write(row)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_signals, supervisor, event, reread, notifier)
            tasks.start_soon(_notify, supervisor, notifier)
            await supervisor.serve()
            tasks.cancel_scope.cancel()
    event("info", "stopped")


def banner(supervisor: "Supervisor") -> list[str]:
    """Say what runs, what is dealt to which shard, where to attach and how to look."""
    config, count = supervisor.config, supervisor.count
    shown = Redactor().text(supervisor.redis_url)
    plural = "s" if count > 1 else ""
    rows = [f"relay {__version__} as {config.name!r} in {count} shard{plural}, run {supervisor.run}"]
    rows += lines(config, count)
    rows.append(f"  Redis: {shown}" + (" (bundled server)" if supervisor.server is not None else ""))
    if supervisor.http is not None:
        rows.append(f"  all shards on one page: {supervisor.http.url}")
    url = "" if supervisor.redis_url == "redis://127.0.0.1:6379" else f" --url {shown}"
    rows.append(f"  look: relay tail{url} '{prefix_of(config)}quotes.*'")
    return rows


def lines(config: Config, count: int) -> list[str]:
    """Say in a few lines what each shard gets, and what could not be parted."""
    dealt = deal(config, count)
    out = []
    for number, (part, topics) in enumerate(zip(dealt.parts, topics_by_shard(config, dealt), strict=True), 1):
        what = ", ".join(f"{name} {len(subs)}" for name, subs in part.items())
        plural = "" if len(topics) == 1 else "s"
        out.append(f"  {name_of(config.name, number)}: {len(topics)} topic{plural}" + (f" ({what})" if what else ""))
    out += [f"  {name}: all on one shard, {why}" for name, why in dealt.together.items()]
    return out


async def _notify(supervisor: "Supervisor", notifier: Notifier) -> None:
    """Tell systemd that we are ready, how many shards run, and that the loop turns."""
    if not notifier:
        return
    notifier.tell("READY=1")
    said = ""
    while True:
        if notifier.watchdog_secs:
            notifier.tell("WATCHDOG=1")
        up = sum(child.state == "up" for child in supervisor.children)
        status = f"STATUS={up} of {supervisor.count} shards run"
        if status != said:
            said = status
            notifier.tell(status)
        await anyio.sleep(min(STATUS_SECS, notifier.watchdog_secs / 3 or STATUS_SECS))


async def _signals(
    supervisor: "Supervisor", event: Callable[..., None], reread: Callable[[], bool], notifier: Notifier
) -> None:
    """The first SIGINT or SIGTERM stops all shards as planned, the second ends all now; SIGHUP goes on to them."""
    seen = 0
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as received:
        async for number in received:
            if number == signal.SIGHUP:
                if not seen:
                    notifier.reloading()
                    if reread():
                        supervisor.reload()
                    notifier.tell("READY=1")
                continue
            seen += 1
            if seen > 1:
                supervisor.kill()
                os._exit(130 if number == signal.SIGINT else 143)
            event("info", "stopping", signal=signal.Signals(number).name)
            notifier.tell("STOPPING=1", "STATUS=stopping: what waits is written")
            supervisor.stop()
