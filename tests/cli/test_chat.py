from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from liquidmm.cli import chat, main
from liquidmm.generate.chat import Conversation
from liquidmm.generate.liquid import Liquid
from liquidmm.generate.outputs import TextPiece
from liquidmm.model.checkpoint import Checkpoint


@pytest.fixture
def run(checkpoint_folder: Path, tmp_path: Path):
    def invoke(*lines: str) -> Result:
        arguments = ["chat", "--checkpoint", str(checkpoint_folder), "--device", "cpu"]
        arguments += ["--out", str(tmp_path), "--max-tokens", "12"]
        return CliRunner().invoke(main, arguments, input="".join(line + "\n" for line in lines))

    return invoke


def text_of(conversation: Conversation, *lines: str) -> str:
    """Return the answers of a conversation in Python, one line each."""
    answers = ""
    for line in lines:
        pieces = conversation.say(line)
        answers += "".join(p.text for p in pieces if isinstance(p, TextPiece)) + "\n"
    return answers


@pytest.fixture
def conversation(checkpoint: Checkpoint) -> Conversation:
    # A model with random weights rarely stops by itself.
    return Conversation(Liquid(checkpoint), max_tokens=12)


def test_piped_lines_answered_in_order(run, conversation: Conversation) -> None:
    result = run("Hello", "", "And you?")
    assert result.exit_code == 0
    assert result.stdout == text_of(conversation, "Hello", "And you?")


def test_small_model_note_at_start(run) -> None:
    assert "This model has 0M parameters" in run("/exit").stderr
    assert chat.size_note(12_000_000).startswith("This model has 12M parameters")
    assert chat.size_note(135_000_000).startswith("This model has 135M parameters: its answers")
    assert chat.size_note(7_000_000_000) == ""


def test_exit_ends_chat(run) -> None:
    assert run("/exit", "Hello").stdout == ""


def test_generate_saves_new_file_each_time(run, tmp_path: Path) -> None:
    (tmp_path / "image-1.png").write_text("mine")
    result = run("/generate a red apple", "/generate a house")
    paths = [tmp_path / f"image-{number}.png" for number in (2, 3)]
    assert result.stdout.splitlines() == [str(path) for path in paths]
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (16, 16)
    assert (tmp_path / "image-1.png").read_text() == "mine"


def test_image_attached_to_next_message(run, tmp_path: Path, conversation: Conversation) -> None:
    path = tmp_path / "my blue.png"
    Image.new("RGB", (30, 30), "blue").save(path)
    result = run(f'/image "{path}"', "What is it?")
    assert result.exit_code == 0
    conversation.attach(path)
    assert result.stdout == text_of(conversation, "What is it?")


def test_reset_starts_new_conversation(run, conversation: Conversation) -> None:
    result = run("Hello", "/reset", "Hello")
    once = text_of(conversation, "Hello")
    assert result.stdout == once + once


def test_help_lists_commands(run) -> None:
    stderr = run("/help").stderr
    for name in ("/image PATH", "/generate PROMPT", "/reset", "/help", "/exit"):
        assert name in stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/generat a cat", "'/generat' is unknown. Did you mean '/generate'?"),
        ("/image", "/image needs the path"),
        ("/image nowhere.png", "nowhere.png: no such file"),
        ("/generate", "prompt: is empty"),
        ("what is this <image>", "'<image>' is reserved"),
    ],
)
def test_error_in_pipe_is_one_line_and_exit_1(run, line: str, message: str) -> None:
    result = run(line, "Hello")
    assert result.exit_code == 1
    assert result.stdout == ""
    error = result.stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_error_at_terminal_continues_chat(
    conversation: Conversation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["/generat", "/image nowhere.png", "/help", "/exit", "Hello"]
    chat.Chat(conversation, tmp_path).run(lines, stop_at_error=False)
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 2
    assert "/generate PROMPT" in captured.err
    assert captured.out == ""
