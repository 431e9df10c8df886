from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from liquidmm.cli import chat, main
from liquidmm.generate.conversation import Conversation
from liquidmm.generate.liquid import Liquid
from liquidmm.generate.reply import TextPiece
from liquidmm.model.checkpoint import Checkpoint


@pytest.fixture
def run(checkpoint_folder: Path, tmp_path: Path):
    def invoke(*lines: str) -> Result:
        arguments = ["chat", "--checkpoint", str(checkpoint_folder), "--device", "cpu"]
        arguments += ["--out", str(tmp_path)]
        return CliRunner().invoke(main, arguments, input="".join(line + "\n" for line in lines))

    return invoke


def words_of(conversation: Conversation, *lines: str) -> str:
    """What a conversation in Python answers, one line each."""
    answers = ""
    for line in lines:
        pieces = conversation.say(line)
        answers += "".join(p.text for p in pieces if isinstance(p, TextPiece)) + "\n"
    return answers


@pytest.fixture
def conversation(checkpoint: Checkpoint) -> Conversation:
    return Conversation(Liquid.from_checkpoint(checkpoint))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with random weights rarely stops by itself."""
    stream = Liquid.stream

    def shortened(self: Liquid, *args: Any, **options: Any) -> Any:
        return stream(self, *args, **{**options, "max_tokens": 12})

    monkeypatch.setattr(Liquid, "stream", shortened)


def test_piped_lines_are_answered_in_order_and_remembered(run, conversation: Conversation) -> None:
    result = run("Hello", "", "And you?")
    assert result.exit_code == 0
    assert result.stdout == words_of(conversation, "Hello", "And you?")


def test_a_small_model_says_so_at_the_start(run) -> None:
    assert "This model has 0M parameters" in run("/exit").stderr
    assert chat._limits(12_000_000).startswith("This model has 12M parameters. It draws and names")
    assert chat._limits(135_000_000).startswith("This model has 135M parameters: its answers")
    assert chat._limits(7_000_000_000) == ""


def test_exit_ends_the_chat(run) -> None:
    assert run("/exit", "Hello").stdout == ""


def test_draw_saves_a_new_file_each_time(run, tmp_path: Path) -> None:
    (tmp_path / "picture-1.png").write_text("mine")
    result = run("/draw a red apple", "/draw a house")
    paths = [tmp_path / f"picture-{number}.png" for number in (2, 3)]
    assert result.stdout.splitlines() == [str(path) for path in paths]
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (16, 16)
    assert (tmp_path / "picture-1.png").read_text() == "mine"


def test_an_image_goes_with_the_next_message(
    run, tmp_path: Path, conversation: Conversation
) -> None:
    path = tmp_path / "my blue.png"
    Image.new("RGB", (30, 30), "blue").save(path)
    result = run(f'/image "{path}"', "What is it?")
    assert result.exit_code == 0
    conversation.attach(path)
    assert result.stdout == words_of(conversation, "What is it?")


def test_reset_begins_anew(run, conversation: Conversation) -> None:
    result = run("Hello", "/reset", "Hello")
    once = words_of(conversation, "Hello")
    assert result.stdout == once + once


def test_help_lists_every_command(run) -> None:
    stderr = run("/help").stderr
    for name in ("/image PATH", "/draw PROMPT", "/reset", "/help", "/exit"):
        assert name in stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/drw a cat", "'/drw' is unknown. Did you mean '/draw'?"),
        ("/image", "/image needs the path of a picture"),
        ("/image nowhere.png", "nowhere.png: no such file"),
        ("/draw", "prompt: is empty"),
        ("what is this <image>", "'<image>' stands for a picture and can't be said"),
    ],
)
def test_a_mistake_in_a_pipe_is_one_line_and_exit_1(run, line: str, words: str) -> None:
    result = run(line, "Hello")
    assert result.exit_code == 1
    assert result.stdout == ""
    error = result.stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_at_a_terminal_a_mistake_is_told_and_the_chat_goes_on(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "_interactive", lambda: True)
    result = run("/drw", "/image nowhere.png", "/exit")
    assert result.exit_code == 0
    assert result.stderr.count("error: ") == 2
    assert "/draw PROMPT" in result.stderr
    assert run("/help").exit_code == 0
