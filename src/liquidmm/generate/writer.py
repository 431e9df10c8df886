"""Steps of an answer to pieces of words and pictures.

Contract: text and pictures come in the order the model made them; a character whose bytes are not
all there yet, and text that may be the beginning of a stop string, are held back until that is
known. Once a stop string has come the answer is over, whatever else the model would write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from liquidmm.generate.engine import Engine, Progress
from liquidmm.generate.pictures import Pictures
from liquidmm.generate.reply import Picture, Piece, Preview, Reply, TextPiece
from liquidmm.generate.requests import (
    Finish,
    ImageRequest,
    ImageRows,
    ImageStep,
    Request,
    Step,
    TextStep,
)
from liquidmm.generate.words import Characters, StopStrings
from liquidmm.prompts import IMAGE_PLACEHOLDER


class Writer:
    """The pieces of one answer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pictures: Pictures,
        request: Request,
        stop: Sequence[str],
    ) -> None:
        """Begin without pieces.

        Args:
            tokenizer: Ids to words.
            pictures: Codes to pictures.
            request: What is answered.
            stop: Strings that end the text.
        """
        self._characters = Characters(tokenizer)
        self._stop = StopStrings(stop)
        self._pictures = pictures
        self._grid = request.grid
        self.finish: Finish | None = None
        """Why the answer is over."""

    def take(self, step: Step) -> Iterator[Piece]:
        """Take a step and yield what it adds."""
        if isinstance(step, TextStep):
            yield from self._text(self._characters.add(step.id))
            return
        yield from self._text(self._characters.rest())
        if self.finish is not None:
            return
        if rest := self._stop.rest():
            yield TextPiece(text=rest)
        if isinstance(step, ImageRows):
            assert self._grid is not None
            image = self._pictures.preview(step.codes, self._grid)
            yield Preview(image=image, done=len(step.codes) / self._grid[0])
        elif isinstance(step, ImageStep):
            yield Picture(image=self._pictures.decode(step.codes), codes=step.codes)
        elif step.error is not None:
            raise step.error
        else:
            self.finish = step.finish

    def _text(self, text: str) -> Iterator[TextPiece]:
        shown = self._stop.add(text)
        if shown:
            yield TextPiece(text=shown)
        if self._stop.hit:
            self.finish = "stop"


def stream(engine: Engine, request: Request, writer: Writer) -> Iterator[Piece]:
    """Answer one request piece by piece; breaking off ends it."""
    # The generator is closed with its last reference, which cancels the request.
    for step in engine.stream(request):
        yield from writer.take(step)
        if writer.finish is not None:
            return


def replies(
    engine: Engine,
    requests: Sequence[Request],
    writers: Sequence[Writer],
    progress: Progress | None = None,
) -> Iterator[tuple[int, Reply]]:
    """Answer several requests at once.

    Args:
        engine: Answers them.
        requests: Any mix; all have been checked.
        writers: One for each.
        progress: Told (codes drawn, codes to draw) of those that ask for a picture.

    Yields:
        (place of the request, its reply), as they are finished.
    """
    sizes = [r.grid if isinstance(r, ImageRequest) else (0, 0) for r in requests]
    total = sum(height * width for height, width in sizes)
    pieces: list[list[Piece]] = [[] for _ in requests]
    answers = [engine.submit(request) for request in requests]
    pending = list(range(len(requests)))
    try:
        while pending:
            engine.step()
            if progress is not None:
                pairs = zip(answers, sizes, strict=True)
                progress(sum(answer.drawn for answer, size in pairs if any(size)), total)
            for place in pending:
                while answers[place].steps and writers[place].finish is None:
                    pieces[place] += writers[place].take(answers[place].steps.popleft())
            done = [place for place in pending if writers[place].finish is not None]
            pending = [place for place in pending if writers[place].finish is None]
            for place in done:
                engine.cancel(answers[place])
                yield place, reply_of(pieces[place], writers[place])
                pieces[place] = []
    finally:
        for answer in answers:
            engine.cancel(answer)


def reply_of(pieces: Sequence[Piece], writer: Writer) -> Reply:
    """Put the pieces of a finished answer together."""
    text = ""
    for piece in pieces:
        if isinstance(piece, TextPiece):
            text += piece.text
        elif isinstance(piece, Picture):
            text += IMAGE_PLACEHOLDER
    images = tuple(piece.image for piece in pieces if isinstance(piece, Picture))
    assert writer.finish is not None
    return Reply(text=text.strip(), images=images, finish=writer.finish)
