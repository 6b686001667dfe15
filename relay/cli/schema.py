"""`relay schema`: JSON Schema of every message, the AsyncAPI document of every topic, TypeScript types."""

from pathlib import Path

import click


@click.command(
    epilog="""Examples:

\b
  relay schema schemas
  relay schema --check schemas
  relay schema --json | jq .trade
  relay schema --asyncapi | jq .channels.quotes""",
)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=Path("schemas"))
@click.option("--check", is_flag=True, help="Write nothing; exit 1 where a file differs from what would be written.")
@click.option("--json", "as_json", is_flag=True, help="Print all schemas as one JSON object, by message type.")
@click.option("--asyncapi", "as_asyncapi", is_flag=True, help="Print the AsyncAPI document.")
def command(folder: Path, check: bool, as_json: bool, as_asyncapi: bool) -> None:
    """Write what consumers need to FOLDER (schemas): the JSON Schema of every message, one file a message type,
    asyncapi.json (every topic, AsyncAPI 3) and relay.d.ts (TypeScript)."""
    from relay import asyncapi, schema, typescript
    from relay.cli._common import fail

    documents = schema.documents()
    if as_json + as_asyncapi + check > 1:
        raise click.UsageError("--json, --asyncapi and --check exclude one another.")
    if as_json or as_asyncapi:
        click.echo(schema.text(documents if as_json else asyncapi.document()), nl=False)
        return
    wanted = {f"{name}.json": schema.text(document) for name, document in documents.items()}
    wanted |= {"asyncapi.json": schema.text(asyncapi.document()), "relay.d.ts": typescript.text()}
    if check:
        wrong = [name for name, text in wanted.items() if _read(folder / name) != text]
        if wrong:
            fail(f"{folder}: {', '.join(wrong)} differ from the messages; write them with: relay schema {folder}")
        click.echo(f"{len(wanted)} files in {folder} are right")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in wanted.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    click.echo(f"{len(wanted)} files written to {folder}")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
