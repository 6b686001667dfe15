"""The command `relay` and `python -m relay`: one small file a command under `relay/cli/`, imported only when asked."""

import importlib
import pkgutil

import click

import relay
import relay.cli


class Commands(click.Group):
    """Finds commands by file name, so that `relay --help` imports none of their libraries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(m.name for m in pkgutil.iter_modules(relay.cli.__path__) if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"relay.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            if near and args[0] not in self.list_commands(ctx):
                raise click.UsageError(f"{error.message} Did you mean '{near[0]}'?", ctx) from None
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, relay.cli.SUMMARIES.get(name, "")) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start here: relay run -c relay.yaml, then in another terminal: relay tail 'quotes.*'",
)
@click.version_option(relay.__version__, prog_name="relay")
def main() -> None:
    """Market-data WebSockets in, typed messages on Redis Streams and pub/sub out."""


if __name__ == "__main__":
    main()
