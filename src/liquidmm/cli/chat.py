"""`liquid chat`: a conversation with text and images.

Answers and the paths of generated images go to stdout, everything else to stderr. On a terminal, an
error is shown and the conversation continues; piped input stops at the first error with exit code
1. A generated image never replaces an existing file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from liquidmm.cli.options import load_model, model_options, save_image
from liquidmm.errors import DataError, LiquidError, suggest

if TYPE_CHECKING:
    from liquidmm.generate.chat import Conversation

HELP = """\
/image PATH       attach an image to your next message
/generate PROMPT  generate an image and save it
/reset            start a new conversation
/help             show this text
/exit             leave (end of input also works)"""


@click.command("chat")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    metavar="FOLDER",
    help="Folder for generated images.  [default: the current folder]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Maximum length of an answer.",
)
@model_options
def command(out: Path, seed: int, max_tokens: int, **model: Any) -> None:
    """Chat with text and images; type /help for the commands."""
    from liquidmm.generate.chat import Conversation

    liquid = load_model(**model)
    interactive = sys.stdin.isatty()
    note = size_note(liquid.parameters)
    if note:
        click.echo(note, err=True)
    if interactive:
        click.echo(HELP, err=True)
    chat = Chat(Conversation(liquid, seed=seed, max_tokens=max_tokens), out)
    chat.run(_prompted_lines() if interactive else sys.stdin, stop_at_error=not interactive)


class Chat:
    """Handles the lines of a conversation."""

    def __init__(self, conversation: Conversation, out: Path) -> None:
        self._conversation = conversation
        self._out = out
        self._dropped = 0

    def run(self, lines: Iterable[str], *, stop_at_error: bool) -> None:
        """Handle lines until one ends the chat."""
        for line in lines:
            try:
                if not self.handle(line):
                    return
            except LiquidError as error:
                if stop_at_error:
                    raise
                click.echo(f"error: {error}", err=True)

    def handle(self, line: str) -> bool:
        """Handle one line; return False to end the chat."""
        text = line.strip()
        if not text.startswith("/"):
            if text:
                self._say(text)
            return True
        name, _, rest = text.partition(" ")
        if name == "/exit":
            return False
        actions = {
            "/image": self._attach,
            "/generate": self._generate,
            "/reset": self._reset,
            "/help": self._help,
        }
        if name not in actions:
            raise DataError(f"chat: '{name}' is unknown.{suggest(name, [*actions, '/exit'])}")
        actions[name](rest.strip())
        return True

    def _say(self, text: str) -> None:
        from liquidmm.generate.outputs import ImagePiece, TextPiece

        for piece in self._conversation.say(text):
            if isinstance(piece, ImagePiece):
                click.echo()
                self._save(piece.image)
            elif isinstance(piece, TextPiece):
                click.echo(piece.text, nl=False)
                sys.stdout.flush()
        click.echo()
        dropped = self._conversation.dropped - self._dropped
        if dropped:
            self._dropped += dropped
            click.echo(f"(context full: dropped the {dropped} oldest messages)", err=True)

    def _generate(self, prompt: str) -> None:
        self._save(self._conversation.generate_image(prompt).image)

    def _attach(self, path: str) -> None:
        if not path:
            raise DataError("chat: /image needs the path of an image, such as /image cat.png.")
        self._conversation.attach(Path(path.strip("\"'")).expanduser())
        click.echo("(attached to your next message)", err=True)

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        click.echo("(new conversation)", err=True)

    def _help(self, _: str) -> None:
        click.echo(HELP, err=True)

    def _save(self, image: Any) -> None:
        number = 1
        while (path := self._out / f"image-{number}.png").exists():
            number += 1
        save_image(image, path)
        click.echo(path)


def _prompted_lines() -> Iterator[str]:
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def size_note(parameters: int) -> str:
    """Return a note on the limits of a small model, or "" for a large one."""
    size = f"{parameters / 1e6:.0f}M"
    if parameters < 100_000_000:
        return (
            f"This model has {size} parameters. It can generate and name only what it was trained "
            "on, and its text is often wrong. Use --checkpoint FOLDER for a larger model."
        )
    if parameters < 1_000_000_000:
        return f"This model has {size} parameters: its answers are short and often wrong."
    return ""
