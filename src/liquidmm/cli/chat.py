"""`liquid chat`: a conversation with words and pictures.

Contract: answers and the paths of drawn pictures go to stdout, everything else to stderr. At a
terminal a mistake is told and the conversation goes on; lines from a pipe stop at the first one,
with exit code 1. A drawn picture never replaces a file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from liquidmm.cli.options import load_model, model_options, save_picture
from liquidmm.errors import DataError, LiquidError, suggest

if TYPE_CHECKING:
    from liquidmm.generate.conversation import Conversation

HELP = """\
/image PATH   show a picture with your next message
/draw PROMPT  draw a picture and save it
/reset        begin anew
/help         this text
/exit         leave (also the end of the input)"""

SMALL, TINY = 1_000_000_000, 100_000_000
"""Parameters below which a model's answers need a warning."""


@click.command("chat")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    metavar="FOLDER",
    help="Where drawn pictures are saved; by default here.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Repeat a conversation.")
@model_options
def command(out: Path, seed: int, **model: Any) -> None:
    """Chat with words and pictures; type /help for what it understands."""
    from liquidmm.generate.conversation import Conversation

    liquid = load_model(**model)
    interactive = _interactive()
    note = _limits(liquid.parameters)
    if note:
        click.echo(note, err=True)
    if interactive:
        click.echo(HELP, err=True)
    chat = Chat(Conversation(liquid, seed=seed), out)
    for line in _lines(interactive):
        try:
            if not chat.take(line):
                return
        except LiquidError as error:
            if not interactive:
                raise
            click.echo(f"error: {error}", err=True)


class Chat:
    """What a line does."""

    def __init__(self, conversation: Conversation, out: Path) -> None:
        self._conversation = conversation
        self._out = out
        self._forgotten = 0

    def take(self, line: str) -> bool:
        """Do what one line says; False ends the chat."""
        text = line.strip()
        if not text.startswith("/"):
            if text:
                self._say(text)
            return True
        name, _, rest = text.partition(" ")
        if name == "/exit":
            return False
        actions = {
            "/image": self._image,
            "/draw": self._draw,
            "/reset": self._reset,
            "/help": self._help,
        }
        if name not in actions:
            raise DataError(f"chat: '{name}' is unknown.{suggest(name, [*actions, '/exit'])}")
        actions[name](rest.strip())
        return True

    def _say(self, text: str) -> None:
        from liquidmm.generate.reply import Picture

        for piece in self._conversation.say(text):
            if isinstance(piece, Picture):
                click.echo()
                self._save(piece.image)
            else:
                click.echo(piece.text, nl=False)
                sys.stdout.flush()
        click.echo()
        forgotten = self._conversation.forgotten - self._forgotten
        if forgotten:
            self._forgotten += forgotten
            click.echo(f"(the context is full: {forgotten} oldest messages forgotten)", err=True)

    def _draw(self, prompt: str) -> None:
        self._save(self._conversation.draw(prompt).image)

    def _image(self, path: str) -> None:
        if not path:
            raise DataError("chat: /image needs the path of a picture, as /image cat.png.")
        self._conversation.attach(Path(path.strip("\"'")).expanduser())
        click.echo("(the picture goes with your next message)", err=True)

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        click.echo("(new conversation)", err=True)

    def _help(self, _: str) -> None:
        click.echo(HELP, err=True)

    def _save(self, image: Any) -> None:
        number = 1
        while (path := self._out / f"picture-{number}.png").exists():
            number += 1
        save_picture(image, path)
        click.echo(path)


def _interactive() -> bool:
    return sys.stdin.isatty()


def _lines(interactive: bool) -> Iterator[str]:
    if not interactive:
        yield from sys.stdin
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def _limits(parameters: int) -> str:
    """Say plainly what to expect of a small model; "" for a large one."""
    size = f"{parameters / 1e6:.0f}M"
    if parameters < TINY:
        return (
            f"This model has {size} parameters. It draws and names what it was trained on; its "
            "words are few and often wrong. A larger one: --checkpoint FOLDER."
        )
    if parameters < SMALL:
        return f"This model has {size} parameters: its answers are short and often wrong."
    return ""
