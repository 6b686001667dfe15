"""`relay replay`: what a provider sent, and what we make of it, again."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from relay.config import Config
    from relay.player import Player, Step


@click.command(
    epilog="""Examples:

\b
  relay replay .relay/journal                              into replay.<name>.*, as fast as it goes
  relay replay .relay/journal --from 14:30 --to 14:35 --only 'quotes.EUR-*' --stdout
  relay replay .relay/journal --from 14:31 --provider coinapi --step
  relay replay .relay/journal --speed 10 --into replay.test.
  relay replay .relay/journal --diff
  relay replay .relay/journal --diff --against friday.jsonl
  relay replay frames.jsonl --provider kraken --stdout
  relay replay --from-stream 'quotes.*' --from 14:30 --speed 1""",
)
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path())
@click.option(
    "--from", "from_", metavar="TIME", help="Begin here: ISO time, HH:MM[:SS] (UTC, last day recorded) or epoch."
)
@click.option("--to", metavar="TIME", help="End before this time.")
@click.option("--provider", metavar="NAME", help="Only messages of this provider; whose frames a frames file holds.")
@click.option("--only", multiple=True, metavar="GLOB", help="Only topics such as 'quotes.EUR-*'; repeatable.")
@click.option("--speed", default="max", show_default=True, metavar="X", help="`max`, or times as fast: 1, 10, 0.5.")
@click.option("--into", metavar="PREFIX", help="Prefix before the live topic names. Default: replay.<name>.")
@click.option("--as-live", is_flag=True, help="Into the live topics themselves.")
@click.option("--stdout", is_flag=True, help="Print messages instead of writing to Redis.")
@click.option("--topics", is_flag=True, help="With --stdout: print {topic, id, message}.")
@click.option("--diff", is_flag=True, help="Compare with what was published; exit 1 where it differs.")
@click.option(
    "--against",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="With --diff: with these lines of `--stdout --topics` or `relay tail --json --topics`, not with the streams.",
)
@click.option("--json", "as_json", is_flag=True, help="With --diff: the report as JSON.")
@click.option("--replace", is_flag=True, help="Delete an earlier replay under the prefix first (only below `replay.`).")
@click.option("--step", is_flag=True, help="Show each frame beside its messages, and wait for a key.")
@click.option("--from-stream", "streams", multiple=True, metavar="GLOB", help="Play what Redis holds; repeatable.")
@click.option("-c", "--config", type=click.Path(dir_okay=False), help="Default: relay.yaml, where there is one.")
@click.option("--url", help="Redis to use. Default: the config's, or the bundled server of a running relay.")
def command(**given: Any) -> None:
    """Play recordings (PATH: journal files or folders, or frames files) through today's code.

    Each message gets the number, entry id, time and bytes that it had. By default it goes to Redis under a prefix of
    its own, `replay.<relay's name>.` before the live name. Statuses that Redis caused are not made again.
    """
    from relay.errors import RelayError

    try:
        code = _Command(given).run()
    except RelayError as error:
        _fail(str(error))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our pipe is gone: the ordinary end of `| head`
        code = 0
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)


def _fail(text: str) -> NoReturn:
    from relay.cli._common import fail

    fail(text)


class _Command:
    """One call: checks what was given, builds source, target and player, plays, tells."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.paths = [Path(p) for p in given["paths"]]
        self.client: Any = None
        self.prefix = ""  # of the live topics, as configured
        self.url = ""
        self.told = 0
        self.replays: list[Any] = []
        targets = [n for n in ("into", "as_live", "stdout", "diff") if given[n]]
        if len(targets) > 1:
            raise click.UsageError(
                f"--{targets[0].replace('_', '-')} and --{targets[1].replace('_', '-')} exclude each other."
            )
        if bool(self.paths) == bool(given["streams"]):
            raise click.UsageError("Name recordings (PATH), or streams by --from-stream; one of the two.")
        if given["diff"] and given["streams"]:
            raise click.UsageError("--diff compares a recording with the streams; name the recording.")
        if given["against"] and not given["diff"]:
            raise click.UsageError("--against goes with --diff.")
        if given["replace"] and (given["stdout"] or given["diff"] or given["as_live"]):
            raise click.UsageError("--replace goes with a prefix.")
        if given["into"] is not None and not re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", given["into"]):
            raise click.UsageError("--into takes 1 to 64 characters of [A-Za-z0-9._:-]; the live topics: --as-live.")
        if given["step"] and not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise click.UsageError("--step needs a terminal.")
        self.speed = self._speed(given["speed"])

    def _speed(self, text: str) -> float:
        if text == "max":
            return 0.0
        try:
            speed = float(text)
        except ValueError:
            speed = -1.0
        if not 0 < speed <= 1e6:
            raise click.UsageError(f"--speed '{text}': `max`, or a factor such as 1, 10 or 0.5.")
        return speed

    # -- parts

    def config(self, *, wanted: bool = False) -> "Config | None":
        from relay.cli._common import read_config

        path = self.given["config"]
        if path is None and Path("relay.yaml").exists():
            path = "relay.yaml"
        if path is None:
            if wanted:
                raise click.UsageError("This needs a relay.yaml: -c FILE.")
            return None
        return read_config(path)

    def redis(self) -> Any:
        """Connect, once; sets `url`, `prefix` and `client`."""
        if self.client is None:
            from relay.cli.tail import _url
            from relay.opening import opened

            path = self.given["config"] or "relay.yaml"
            self.url, self.prefix, login = (self.given["url"], "", {}) if self.given["url"] else _url(path)
            if self.given["url"] and (self.given["config"] or Path(path).exists()):
                config = self.config()
                self.prefix = config.redis.prefix if config else ""
            import redis

            try:
                self.client = opened(self.url, login)
                self.client.ping()
            except ValueError as error:
                _fail(str(error))
            except redis.exceptions.RedisError as error:
                _fail(f"Redis cannot be reached: {error}. Name a server with --url, or print with --stdout.")
        return self.client

    def tell(self, text: str) -> None:
        """One line on standard error."""
        self.told += 1
        print(f"relay: {text}", file=sys.stderr)

    # -- run

    def run(self) -> int:
        if self.given["streams"]:
            return self._streams()
        from relay.journal import is_journal

        journals = [p for p in self.paths if is_journal(p) or p.is_dir() or not p.exists()]
        if journals and len(journals) < len(self.paths):
            raise click.UsageError("Journals and frames files cannot be played together.")
        return self._journals() if journals else self._frames()

    def _journals(self) -> int:
        from relay.journal import overview, runs_of
        from relay.player import journal_steps
        from relay.providers import PROVIDERS
        from relay.replay import Replay

        given = self.given
        runs = runs_of(self.paths, lambda path, text: self.tell(f"{path.name}: {text}"))
        last_ns = max(overview(run.files[-1].path).last_ns or run.first_ns for run in runs)
        first_ns = min(run.first_ns for run in runs)
        from_ns, to_ns = self._span(last_ns)
        headers = {run.relay: run.files[0].header for run in runs}
        if given["provider"]:
            known = {name for run in runs for file in run.files for name in file.header.providers}
            if given["provider"] not in known:
                from relay.cli._common import usage_near

                raise click.UsageError(usage_near("recorded provider", given["provider"], known))
        target, run_target = self._target(headers, {run.run: run.files[0].header.accounts for run in runs}, first_ns)
        player = self._player(target, from_ns, to_ns)
        for header in (file.header for run in runs for file in run.files):
            player.prefixes |= {header.prefix, *(p.prefix for p in header.providers.values() if p.prefix)}
        if given["diff"]:
            self._compared(target, player, max(from_ns, first_ns), min(to_ns or last_ns, last_ns))

        def make(header: Any) -> Replay:
            aside = partial(target.set_aside, header.run) if given["diff"] else None
            replay = Replay(header, PROVIDERS, player.put, self.tell, aside)
            self.replays.append(replay)
            return replay

        steps = journal_steps(runs, make, lambda path, text: self.tell(f"{path.name}: {text}"))
        self._play(player, target, run_target, steps, max(first_ns, from_ns), min(to_ns or last_ns, last_ns))
        ignored = sum(replay.ignored for replay in self.replays)
        if ignored:
            self.tell(f"{ignored} frames came behind an end that today's code makes; they gave nothing")
        return self._told(player, target)

    def _frames(self) -> int:
        """Frames files: one provider's frames, recorded by somebody else."""
        from relay.cli._common import frames_input, plain_options, usage_near
        from relay.normalizer import Normalizer
        from relay.player import merged
        from relay.providers import PROVIDERS
        from relay.replay import FramesReplay

        if self.given["diff"] and not self.given["against"]:
            raise click.UsageError("--diff of a frames file needs --against: it does not know what was published.")
        config = self.config() if self.given["config"] else None
        names: dict[str, str] = {}
        players: list[tuple[Path, Any, Any, Any]] = []
        for path in self.paths:
            name = self.given["provider"] or path.name.split(".")[0]
            if config is not None and name in config.providers:
                section = config.providers[name]
                players.append((path, section.spec, section.options, section.subscriptions))
            elif name in PROVIDERS:
                spec = PROVIDERS[name]
                players.append((path, spec, plain_options(spec), None))
            else:
                raise click.UsageError(usage_near("provider", name, PROVIDERS) + " Name it with --provider.")
            names[str(path)] = name
        relay = config.name if config is not None else "relay"
        firsts = [_first_ns(path) for path in self.paths]
        if self.given["diff"] and None in firsts:
            path = self.paths[firsts.index(None)]
            raise click.UsageError(f"--diff needs frames with times (`t`): those of {path} get others each time.")
        run = min(first or path.stat().st_mtime_ns for first, path in zip(firsts, self.paths, strict=True)) // 1_000_000
        from relay.records import FORMAT, Header

        header = Header(format=FORMAT, relay=relay, run=run, file=1, version="")
        target, run_target = self._target({relay: header}, {run: True}, run * 1_000_000)
        # a section's name picks its frames; it is no filter of messages here
        self.given["provider"] = None
        from_ns, to_ns = self._span(None)
        player = self._player(target, from_ns, to_ns)
        sources: list[Iterator[Step]] = []
        for path, spec, options, subscriptions in players:
            normalizer = Normalizer(spec, options, subscriptions, name=names[str(path)], run=run)
            replay = FramesReplay(relay, normalizer, player.put)
            sources.append(_frame_steps(path, replay, frames_input))
        if self.given["diff"]:
            self._compared(target, player, from_ns, to_ns)
        self._play(player, target, run_target, merged(sources), run * 1_000_000, run * 1_000_000)
        return self._told(player, target)

    def _streams(self) -> int:
        from relay.cli._replay_redis import stream_steps
        from relay.records import FORMAT, Header

        given = self.given
        if given["as_live"]:
            raise click.UsageError("--as-live cannot write streams onto themselves.")
        client = self.redis()
        config = self.config()
        relay = config.name if config is not None else "relay"
        import time

        now_ns = time.time_ns()
        from_ns, to_ns = self._span(now_ns)
        header = Header(format=FORMAT, relay=relay, run=now_ns // 1_000_000, file=1, version="", prefix=self.prefix)
        target, run_target = self._target({relay: header}, {}, now_ns)
        player = self._player(target, from_ns, to_ns)
        player.prefixes.add(self.prefix)
        steps, count = stream_steps(client, self.prefix, given["streams"], relay, player.put, from_ns, to_ns)
        if not count:
            _fail(f"no stream matches {' '.join(given['streams'])} at {self.url}")
        self._play(player, target, run_target, steps, from_ns, to_ns or now_ns)
        return self._told(player, target)

    # -- what they share

    def _span(self, last_ns: int | None) -> tuple[int, int | None]:
        from_ns = _moment(self.given["from_"], "--from", last_ns)
        to_ns = _moment(self.given["to"], "--to", last_ns)
        if from_ns is not None and to_ns is not None and to_ns <= from_ns:
            raise click.UsageError("--to must be later than --from.")
        return from_ns or 0, to_ns

    def _player(self, target: Any, from_ns: int, to_ns: int | None) -> "Player":
        from relay.player import Player

        return Player(
            target,
            speed=self.speed,
            from_ns=from_ns,
            to_ns=to_ns,
            only=self.given["only"],
            provider=self.given["provider"] or "",
        )

    def _compared(self, target: Any, player: "Player", from_ns: int, to_ns: int | None) -> None:
        """Tell the target what of the published is to be compared."""
        target.start_ms = from_ns // 1_000_000
        if to_ns is not None:
            target.end_ms = to_ns // 1_000_000
        target.wants = player.wants

    def _target(
        self, headers: dict[str, Any], runs: dict[int, bool], first_ns: int
    ) -> tuple[Any, Callable[..., Any] | None]:
        """Give the target, and for Redis its `run`. `runs`: whether accounts were recorded."""
        from relay.player import LinesTarget, RedisTarget

        given = self.given
        if given["stdout"]:
            return LinesTarget(sys.stdout.buffer, topics=given["topics"]), None
        if given["against"]:
            from relay.cli._replay_compare import DiffTarget, Lines

            return DiffTarget(Lines(given["against"]), runs), None
        client = self.redis()
        if given["diff"]:
            from relay.cli._replay_compare import DiffTarget, Streams

            return DiffTarget(Streams(client, self.prefix, set(headers)), runs), None
        from relay.config import RedisConfig

        config = self.config()
        settings = config.redis if config is not None else RedisConfig()
        places: dict[str, tuple[str, str]] = {}
        for relay, header in headers.items():
            if given["as_live"]:
                places[relay] = ("", header.prefix)
                continue
            from relay.cli._replay_redis import check_place

            prefix = f"replay.{relay}." if given["into"] is None else given["into"]
            if given["into"] is not None and len(headers) > 1:
                prefix = f"{prefix}{relay}."
            why = check_place(client, prefix, given["replace"])
            if why:
                _fail(why)
            places[relay] = (prefix, prefix)
        if given["as_live"]:
            names = ", ".join(headers)
            print(
                f"relay: WARNING: this replays into the live topics of {names} at {self.url}; their consumers cannot "
                "tell it from live data. What a stream holds already is not written again.",
                file=sys.stderr,
            )
        target = RedisTarget(self.url, settings, places, run=first_ns // 1_000_000, on_event=self._sink_event)
        return target, target.run

    def _sink_event(self, name: str, fields: dict[str, Any]) -> None:
        if name not in ("connected", "stopped", "confirmed", "streams_trimmed"):
            words = " ".join(f"{key}={value}" for key, value in fields.items())
            self.tell(f"Redis: {name.replace('_', ' ')} {words}"[:500])

    def _play(
        self, player: "Player", target: Any, run_target: Any, steps: Iterator["Step"], first_ns: int, last_ns: int
    ) -> None:
        import anyio

        from relay.errors import RelayError

        try:
            anyio.run(self._played, player, target, run_target, steps, first_ns, last_ns)
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            if isinstance(error, (RelayError, BrokenPipeError, KeyboardInterrupt)):
                raise error from None
            raise

    async def _played(
        self, player: "Player", target: Any, run_target: Any, steps: Iterator["Step"], first_ns: int, last_ns: int
    ) -> None:
        import anyio

        from relay.cli._replay_view import Bar, Steps, control, keys

        with ExitStack() as stack:
            listen = stack.enter_context(keys()) if sys.stderr.isatty() else None
            if self.given["step"] and listen is not None:
                player.shown = Steps(listen, player.stop, self.given["provider"])
            elif listen is not None:
                listen(lambda key: control(player, key))
            async with anyio.create_task_group() as tasks:
                if not self.given["step"]:
                    tasks.start_soon(Bar(player, first_ns, last_ns, with_keys=listen is not None).run)
                if run_target is None:
                    await player.run(steps)
                else:
                    await run_target(lambda: player.run(steps))
                tasks.cancel_scope.cancel()

    def _told(self, player: "Player", target: Any) -> int:
        """Tell how it went; give the exit code."""
        if self.given["diff"]:
            from relay.cli._replay_diff import show

            if target.left_out:
                self.tell("accounts were not recorded (`journal.accounts`), so they are not compared")
            return show(target.difference, as_json=self.given["as_json"])
        self._sum(player, target)
        return 0

    def _sum(self, player: "Player", target: Any) -> None:
        already = getattr(target, "already", 0)
        left = getattr(target, "left", 0)
        where = ""
        if hasattr(target, "places"):
            where = " into " + ", ".join(
                f"{prefix}*" if prefix else "the live topics" for prefix, _ in target.places.values()
            )
        print(
            f"{player.steps:,} records, {player.messages:,} messages{where}"
            + (f", {already:,} were there already" if already else ""),
            file=sys.stderr,
        )
        if left:
            _fail(f"{left:,} messages could not be written; the lines above say why")


def _moment(text: str | None, option: str, last_ns: int | None) -> int | None:
    """Read a time. `HH:MM` is the last one at or before the end of the recording."""
    if text is None:
        return None
    from relay.times import any_ns

    clock = re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9](?:\.[0-9]{1,9})?))?", text)
    if clock is None:
        ns = any_ns(text)
        if ns is None:
            raise click.UsageError(f"{option} '{text}': an ISO time, HH:MM[:SS] in UTC, or seconds since 1970.")
        return ns
    if last_ns is None:
        raise click.UsageError(f"{option} '{text}': a frames file's day is not known; give an ISO time.")
    day = 86_400 * 1_000_000_000
    hours, minutes, seconds = clock.groups()
    within = (int(hours) * 3600 + int(minutes) * 60) * 1_000_000_000 + round(float(seconds or 0) * 1e9)
    ns = last_ns // day * day + within
    return ns if ns <= last_ns or option == "--to" else ns - day


def _first_ns(path: Path) -> int | None:
    """The first time in a frames file; None where it has none."""
    from relay.cli._common import frames_input

    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as source:
            return next((frame.t_ns for frame in frames_input(source) if frame.t_ns), None)
    except OSError as error:
        _fail(f"{path}: {error.strerror}")


def _frame_steps(path: Path, replay: Any, frames_input: Callable[..., Iterator[Any]]) -> Iterator["Step"]:
    """Steps of a frames file. Frames without a time follow the one before by a millisecond, the first the file."""

    def apply(frame: Any, now_ns: int) -> None:
        replay.apply(frame.data, frame.binary, frame.session, now_ns)

    now = (_first_ns(path) or path.stat().st_mtime_ns) - 1_000_000
    with path.open(encoding="utf-8", errors="surrogateescape") as source:
        for frame in frames_input(source):
            # never back: entry ids rise
            now = max(frame.t_ns, now) if frame.t_ns is not None else now + 1_000_000
            yield now, apply, frame
