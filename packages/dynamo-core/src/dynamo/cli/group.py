"""The root command: names and summaries come from plugins; a subcommand's module is imported when it is run."""

from __future__ import annotations

import importlib.metadata
import platform

import click

from dynamo.errors import PluginError
from dynamo.plugins import plugins
from dynamo.plugins.registry import import_target

__all__ = ["LazyGroup", "root"]


class LazyGroup(click.Group):
    """A group over `dynamo.plugins.plugins().commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All names, in the order in which plugins registered them."""
        return list(plugins().commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one subcommand.

        Raises:
            PluginError: its module cannot be imported, or is no click command.
        """
        entry = plugins().commands.get(cmd_name)
        if entry is None:
            return None
        if isinstance(entry.target, click.Command):
            return entry.target
        try:
            command = import_target(entry.target)
        except ImportError as error:
            raise PluginError(
                f"command {cmd_name!r} of {entry.distribution} cannot be imported: {error}",
                hint=f"is everything that {entry.distribution} needs installed? `dynamo doctor` checks.",
            ) from error
        if not isinstance(command, click.Command):
            raise PluginError(f"{entry.target} of {entry.distribution} is not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown name says which known one is near."""
        name = args[0]
        if not name.startswith("-") and name not in plugins().commands and not ctx.resilient_parsing:
            from difflib import get_close_matches

            close = get_close_matches(name, self.list_commands(ctx), n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(plugins().commands))}"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The help's list, from summaries alone: nothing is imported."""
        rows = [(entry.name, entry.summary) for entry in plugins().commands.values()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    try:
        version = importlib.metadata.version("dynamo-core")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    click.echo(f"dynamo {version} (Python {platform.python_version()})")
    ctx.exit()


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks of errors.  [env: DYN_DEBUG]")
def root() -> None:
    """Serve large language models, on this machine or on many."""
