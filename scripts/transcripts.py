"""Print ten conversations with a checkpoint as Markdown, as in `liquid chat --seed 0`.

    python scripts/transcripts.py [CHECKPOINT] > docs/chats.md

Each conversation is a list of lines; `image:PATH` attaches an image to the next line. Nothing is
selected or repeated. Generated images go to docs/chats/.
"""

import sys
from pathlib import Path

from liquidmm import load
from liquidmm.files import atomic_file
from liquidmm.generate.chat import Conversation
from liquidmm.generate.outputs import ImagePiece, TextPiece

CONVERSATIONS = (
    ("Hello!", "Who are you?", "What can you do?"),
    ("What is an apple?", "What is a violin?"),
    ("Draw a red apple, noto style.", "Thank you!"),
    ("image:examples/octopus.png", "What is this?", "What is an octopus?"),
    ("What kind of thing is a hammer?", "Can you draw one?", "Draw a hammer, twemoji style."),
    ("Draw a snowman, fluent flat style.", "What is a snowman?"),
    ("What is a volcano?", "Draw a volcano, emojione style."),
    (
        "image:examples/scene.png",
        "How many red apples are there?",
        "Is there a ghost?",
        "Is there a dog?",
    ),
    ("Good morning", "Tell me what a whale is.", "Goodbye"),
    ("What is the capital of France?", "What is 12 times 7?"),
)

HEADER = """# Ten conversations

The default model with seed 0, printed by `python scripts/transcripts.py > docs/chats.md`. Nothing
was selected or repeated. The last one asks for facts that a model of this size does not know.
"""


def main() -> None:
    """Run the conversations and print them."""
    liquid = load(sys.argv[1] if len(sys.argv) > 1 else None)
    folder = Path("docs/chats")
    out = sys.stdout.write
    out(HEADER)
    for number, lines in enumerate(CONVERSATIONS, start=1):
        out(f"\n## {number}\n")
        conversation = Conversation(liquid, seed=0)
        for line in lines:
            if line.startswith("image:"):
                path = Path(line.removeprefix("image:"))
                conversation.attach(path)
                out(f"\n![shown](../{path})\n")
                continue
            out(f"\n**You:** {line}\n\n**Liquid:** ")
            for piece in conversation.say(line):
                if isinstance(piece, ImagePiece):
                    path = folder / f"{number}.png"
                    with atomic_file(path) as temporary:
                        piece.image.save(temporary)
                    out(f"![generated]({path.relative_to('docs')})")
                elif isinstance(piece, TextPiece):
                    out(piece.text)
            out("\n")


if __name__ == "__main__":
    main()
