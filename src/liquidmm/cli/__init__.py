"""The `liquid` command: one file per subcommand, each imported only when needed.

Errors become exit codes only here: a `LiquidError` prints one line to stderr and exits with 1,
wrong usage exits with 2, Ctrl-C with 130, and a bug shows its traceback. Results go to stdout,
progress to stderr. `liquid --help` imports no subcommand; a test compares the one-line help in the
table below with that of each command.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import click

from liquidmm import __version__
from liquidmm.errors import LiquidError, suggest

# Name -> location of the click command ("module:attribute") and its help, in display order.
COMMANDS: dict[str, tuple[str, str]] = {
    # use a model
    "generate": ("liquidmm.cli.generate:command", "Generate images from a prompt."),
    "describe": ("liquidmm.cli.describe:command", "Describe an image."),
    "ask": ("liquidmm.cli.ask:command", "Answer a question about an image."),
    "chat": (
        "liquidmm.cli.chat:command",
        "Chat with text and images; type /help for the commands.",
    ),
    # make a model
    "expand": (
        "liquidmm.cli.expand:command",
        "Turn a decoder language model into a Liquid checkpoint.",
    ),
    "init": (
        "liquidmm.cli.init:command",
        "Create a small random language model and train its tokenizer.",
    ),
    "train-tokenizer": (
        "liquidmm.cli.train_tokenizer:command",
        "Train an image tokenizer from a TOML config.",
    ),
    "reconstruct": (
        "liquidmm.cli.reconstruct:command",
        "Compare an image with its reconstruction.",
    ),
    "icons": ("liquidmm.cli.icons:command", "Build the built-in dataset: icons, scenes and text."),
    "encode": (
        "liquidmm.cli.encode:command",
        "Encode images and their texts into shards of image codes.",
    ),
    "inspect": (
        "liquidmm.cli.inspect:command",
        "Show what a folder of encoded shards contains.",
    ),
    "verify": (
        "liquidmm.cli.verify:command",
        "Check the shards of a folder against their checksums.",
    ),
    "train": ("liquidmm.cli.train:command", "Train a model from a TOML config."),
    "export": (
        "liquidmm.cli.export:command",
        "Export a checkpoint to vLLM or llama.cpp.",
    ),
    # evaluate a model
    "evaluate": ("liquidmm.cli.evaluate:command", "Measure a checkpoint."),
    "info": ("liquidmm.cli.info:command", "Show versions, the device and a checkpoint's layout."),
}


class LazyGroup(click.Group):
    """A group that imports a subcommand only to run it or to show its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in table order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest a similar one."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command '{args[0]}'.{suggest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command inside the error boundary."""
        try:
            return super().invoke(ctx)
        except LiquidError as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            ctx.exit(1)
        except (KeyboardInterrupt, click.Abort):
            click.echo("", err=True)
            ctx.exit(130)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="liquid")
def main() -> None:
    """Generate images, describe images and chat with one language model.

    Every command uses the default model that ships with this package unless you name another.
    """
    # transformers' warnings are for programmers; the commands report what users need to know.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
