"""`relay schema`: the JSON Schema of every message."""

from pathlib import Path

import click


@click.command(
    epilog="""Examples:

\b
  relay schema schemas
  relay schema --check schemas
  relay schema --json | jq .trade""",
)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=Path("schemas"))
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where a file differs from what would be written.")
@click.option("--json", "as_json", is_flag=True, help="Print all schemas as one JSON object, by message type.")
def command(folder: Path, check: bool, as_json: bool) -> None:
    """Write the JSON Schema of every message to FOLDER (schemas), one file a message type."""
    from relay import schema
    from relay.cli._common import fail

    documents = schema.documents()
    if as_json:
        if check:
            raise click.UsageError("--json and --check exclude each other.")
        click.echo(schema.text(documents), nl=False)
        return
    wanted = {f"{name}.json": schema.text(document) for name, document in documents.items()}
    if check:
        wrong = [name for name, text in wanted.items() if _read(folder / name) != text]
        if wrong:
            fail(f"{folder}: {', '.join(wrong)} differ from the messages; write them with: relay schema {folder}")
        click.echo(f"{len(wanted)} schemas in {folder} are right")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in wanted.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    click.echo(f"{len(wanted)} schemas written to {folder}")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
