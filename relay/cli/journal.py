"""`relay journal`: what recordings hold."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from relay.journal import Overview


@click.group(
    epilog="""Examples:

\b
  relay journal ls .relay/journal
  relay journal cat .relay/journal --frames | jq -r .frame
  relay journal verify .relay/journal""",
)
def command() -> None:
    """Look at recordings (`journal:` in relay.yaml, or `relay run --record DIR`)."""


_PATHS = click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path())


@command.command()
@_PATHS
@click.option("--json", "as_json", is_flag=True, help="One JSON line a file.")
@click.option("--sessions", is_flag=True, help="Every session too: opened, closed and why, frames. Reads everything.")
def ls(paths: tuple[str, ...], as_json: bool, sessions: bool) -> None:
    """List runs and files: spans, records, sizes, what was recorded."""
    from relay.cli._common import fail
    from relay.errors import JournalError
    from relay.journal import overview, runs_of
    from relay.times import iso

    try:
        runs = runs_of([Path(p) for p in paths], _tell)
        for run in runs:
            header = run.files[-1].header
            if not as_json:
                what = ", ".join(f"{name} ({p.type})" for name, p in header.providers.items())
                click.echo(f"relay {run.relay}, run {run.run} (version {header.version}): {what}")
            for file in run.files:
                seen = overview(file.path)
                found = _sessions(file.path) if sessions else []
                if as_json:
                    click.echo(json.dumps(_file(file, seen) | ({"sessions": found} if sessions else {})))
                    continue
                span = f"{iso(seen.first_ns)[:19]}Z to {iso(seen.last_ns)[:19]}Z"
                sizes = f"{_size(file.size)} ({_size(seen.raw)} unpacked)"
                torn = f", {len(seen.damages)} damaged" if any(not d.torn for d in seen.damages) else ""
                end = ", its end is torn or still being written" if any(d.torn for d in seen.damages) else ""
                click.echo(f"  {file.path.name}  {span}  {seen.records:,} records  {sizes}{torn}{end}")
                for one in found:
                    state = f"{one['opened']} to {one['closed'] or 'the end of the file'}"
                    click.echo(f"    {one['conn']}  {state}  {one['frames']:,} frames  {one['why']}")
    except JournalError as error:
        fail(str(error))
    except BrokenPipeError:
        sys.stderr.close()


@command.command()
@_PATHS
@click.option("--from", "from_", metavar="TIME", help="Begin here: ISO time or epoch.")
@click.option("--to", metavar="TIME", help="End before this time.")
@click.option("--provider", metavar="NAME", help="Only records of this provider's connections.")
@click.option("--frames", is_flag=True, help="Only received frames.")
@click.option("--all", "everything", is_flag=True, help="Ticks too, which are left out otherwise.")
def cat(
    paths: tuple[str, ...], from_: str | None, to: str | None, provider: str | None, frames: bool, everything: bool
) -> None:
    """Print records as JSON lines, damaged places left out and told. Each frame is a text, `frame`, as it came."""
    from relay.cli._common import fail
    from relay.errors import JournalError
    from relay.journal import Damage, read_blocks, runs_of
    from relay.times import any_ns

    first, last = 0, 2**63
    for name, text in (("--from", from_), ("--to", to)):
        ns = any_ns(text) if text is not None else None
        if text is not None and ns is None:
            raise click.UsageError(f"{name} '{text}': an ISO time or seconds since 1970.")
        if ns is not None:
            first, last = (ns, last) if name == "--from" else (first, ns)
    from relay import records

    conn = f'"conn":"{provider}/'.encode() if provider else b""
    try:
        for run in runs_of([Path(p) for p in paths], _tell):
            for file in run.files:
                with file.path.open("rb") as source:
                    for block in read_blocks(source):
                        if isinstance(block, Damage):
                            _tell(file.path, str(block))
                            continue
                        if block.last_ns < first or block.first_ns >= last:
                            continue
                        out = []
                        for line in filter(None, block.lines.split(b"\n")):
                            if frames and not line.startswith(b'{"conn"'):
                                continue
                            if not everything and line.startswith(b'{"do":"tick"'):
                                continue
                            if conn and conn not in line[:200]:
                                continue
                            if first or last < 2**63:
                                when = records.decode_lines(line)[0].t
                                if not first <= when < last:
                                    continue
                            out.append(records.plain(line))
                        sys.stdout.buffer.write(b"".join(out))
        sys.stdout.buffer.flush()
    except JournalError as error:
        fail(str(error))
    except BrokenPipeError:
        sys.stderr.close()


@command.command()
@_PATHS
@click.option("--json", "as_json", is_flag=True, help="One JSON line a file.")
def verify(paths: tuple[str, ...], as_json: bool) -> None:
    """Unpack and check everything; exit 1 where something is damaged.

    A torn end is what a killed relay leaves, or a file that is being written: it is told and is no damage.
    """
    from relay.cli._common import fail
    from relay.errors import JournalError
    from relay.journal import files_of, overview
    from relay.journal.reader import open_file

    bad = False
    try:
        for path in files_of([Path(p) for p in paths]):
            try:
                file = open_file(path)
            except JournalError as error:
                bad = True
                click.echo(json.dumps({"file": str(path), "error": str(error)}) if as_json else f"{error}")
                continue
            seen = overview(path, whole=True)
            bad = bad or any(not damage.torn for damage in seen.damages)
            if as_json:
                click.echo(json.dumps(_file(file, seen)))
                continue
            state = "damaged" if any(not d.torn for d in seen.damages) else "torn end" if seen.damages else "good"
            click.echo(f"{path}: {state}, {seen.records:,} records, {_size(seen.raw)} unpacked")
            for damage in seen.damages:
                click.echo(f"  {damage}")
    except JournalError as error:
        fail(str(error))
    raise SystemExit(int(bad))


def _tell(path: Path, text: str) -> None:
    print(f"relay: {path.name}: {text}", file=sys.stderr)


def _file(file: Any, seen: "Overview") -> dict[str, Any]:
    from relay.times import iso

    header = file.header
    return {
        "file": str(file.path),
        "relay": header.relay,
        "run": header.run,
        "number": header.file,
        "version": header.version,
        "providers": {name: p.type for name, p in header.providers.items()},
        "accounts": header.accounts,
        "from": iso(seen.first_ns),
        "to": iso(seen.last_ns),
        "records": seen.records,
        "bytes": file.size,
        "bytes_unpacked": seen.raw,
        "damages": [
            {"from": d.start, "to": d.end, "why": d.why, "records": d.records, "torn": d.torn} for d in seen.damages
        ],
    }


def _sessions(path: Path) -> list[dict[str, Any]]:
    """Every session of a file, in the order of their openings."""
    from relay import records
    from relay.journal import read_records
    from relay.times import iso

    found: list[dict[str, Any]] = []
    current: dict[str, dict[str, Any]] = {}
    for record in read_records(path, _tell):
        if not record.conn:
            continue
        session = current.get(record.conn)
        if record.do == "opened" or (session is None and record.do in ("in", "closed")):
            opened = iso(record.t) if record.do == "opened" else "(not open)" if record.do == "closed" else "(before)"
            session = current[record.conn] = {
                "conn": record.conn,
                "opened": opened,
                "closed": "",
                "frames": 0,
                "why": "",
            }
            found.append(session)
        if session is None:
            continue
        if record.do == "in":
            session["frames"] += 1
        elif record.do == "closed":
            ended = records.data_of(record, records.Ended)
            session["closed"] = iso(record.t)
            session["why"] = " ".join(
                filter(None, (ended.text or ended.reason, f"({ended.code})" if ended.code else ""))
            )
            del current[record.conn]
    return found


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
