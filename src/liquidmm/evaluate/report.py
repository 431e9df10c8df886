"""What a task is given and hands back: context, answers that survive a stop, one result format.

The JSON result is one object: ``task``, ``figures`` (name -> value and unit), ``counts`` (name ->
right, n and the 95 % interval of the share) and ``settings`` (what has to be the same for the same
figures).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from PIL import Image

from liquidmm import files
from liquidmm.errors import ConfigError, LiquidError
from liquidmm.evaluate.metrics import Tally, wilson
from liquidmm.figures import Figure, rounded, to_json, to_lines
from liquidmm.generate.sampling import SamplingConfig
from liquidmm.image_tokenizer import images as pixels

T = TypeVar("T")

_SETTINGS = "settings.json"


class Model(Protocol):
    """What the tasks use of ``liquidmm.generate.liquid.Liquid``; see there."""

    @property
    def sampling(self) -> SamplingConfig:
        """How pictures are drawn unless told otherwise."""

    def generate_images(
        self, prompts: Sequence[str], *, seeds: Sequence[int], sampling: SamplingConfig
    ) -> list[Image.Image]:
        """Draw one picture for each prompt, each with its own seed."""

    def describe_many(self, images: Sequence[Image.Image]) -> list[str]:
        """Caption each picture greedily."""

    def ask_many(self, questions: Sequence[tuple[Image.Image, str]]) -> list[str]:
        """Answer each question about its picture greedily."""


@dataclass(kw_only=True, slots=True)
class Report:
    """Result of one task."""

    task: str
    """Name of the task."""
    settings: dict[str, Any]
    """What has to be the same for the same figures."""
    figures: dict[str, Figure] = field(default_factory=dict)
    """All numbers."""
    counts: dict[str, Tally] = field(default_factory=dict)
    """Tries behind the figures that are shares."""

    def share(self, name: str, tally: Tally) -> None:
        """Add a share of right tries in percent, and its counts."""
        self.counts[name] = tally
        self.figures[name] = Figure(value=round(tally.percent, 2), unit="%")

    def number(self, name: str, value: float, unit: str) -> None:
        """Add a number."""
        self.figures[name] = rounded(value, unit)

    def to_dict(self) -> dict[str, Any]:
        """The JSON result; a value that is not finite is null."""
        counts = {}
        for name, tally in self.counts.items():
            low, high = wilson(tally)
            counts[name] = {
                "right": tally.right,
                "n": tally.n,
                "low": round(low, 2),
                "high": round(high, 2),
            }
        return {
            "task": self.task,
            "figures": to_json(self.figures),
            "counts": counts,
            "settings": self.settings,
        }

    def to_table(self) -> str:
        """The same for a reader: a line for each figure, with counts and interval of a share."""
        remarks = {}
        for name, tally in self.counts.items():
            low, high = wilson(tally)
            remarks[name] = f"{tally.right} of {tally.n}; 95 % interval {low:.1f} to {high:.1f}"
        lines = [self.task, *to_lines(self.figures, remarks)]
        return "\n".join(
            [*lines, "  " + ", ".join(f"{name} {value}" for name, value in self.settings.items())]
        )


class Journal:
    """Answers and pictures of a task, kept so that an interrupted run goes on where it stopped."""

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        """Open or start the folder.

        Args:
            folder: Where to keep them; None keeps them in memory only.
            settings: What must be the same for old answers to count.

        Raises:
            ConfigError: The folder holds a run with other settings.
            LiquidError: The folder cannot be written.
        """
        self.folder = folder
        self._settings = json.loads(json.dumps(settings))
        self._texts: dict[str, str] = {}
        if folder is None or not (folder / _SETTINGS).is_file():
            return
        old = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        names = sorted({*old, *self._settings})
        if changed := [name for name in names if old.get(name) != self._settings.get(name)]:
            raise ConfigError(
                f"{folder}: holds a run with other settings ({', '.join(changed)}). "
                "Give another --out, or remove that folder."
            )
        self._read()

    def _start(self) -> None:
        """Note the settings, with the first answer only: a failed start leaves no trace."""
        assert self.folder is not None, "only called with a folder"
        if not (self.folder / _SETTINGS).is_file():
            with files.atomic_file(self.folder / _SETTINGS) as temporary:
                temporary.write_text(json.dumps(self._settings, indent=2) + "\n", encoding="utf-8")

    def _read(self) -> None:
        """Take the answers of an earlier run; a last line that was cut off is made again."""
        path = self._answers
        if not path.is_file():
            return
        *whole, _ = path.read_text(encoding="utf-8").split("\n")
        self._texts = {row["key"]: row["text"] for row in map(json.loads, whole)}
        with files.atomic_file(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in whole), encoding="utf-8")

    @property
    def _answers(self) -> Path:
        """File of the answers."""
        assert self.folder is not None, "only called with a folder"
        return self.folder / "answers.jsonl"

    def texts(self, keys: Sequence[str], make: Callable[[list[int]], list[str]]) -> list[str]:
        """The answers under some keys: kept ones, the others made in one call and kept from now on.

        Args:
            keys: Unique in the task.
            make: Given the positions of the missing ones, returns their answers in that order.

        Raises:
            LiquidError: The answers cannot be written.
        """
        missing = [i for i, key in enumerate(keys) if key not in self._texts]
        lines = []
        for i, text in zip(missing, make(missing) if missing else [], strict=True):
            self._texts[keys[i]] = text
            lines.append(json.dumps({"key": keys[i], "text": text}, ensure_ascii=False) + "\n")
        if self.folder is not None and lines:
            self._start()
            try:
                with self._answers.open("a", encoding="utf-8") as file:
                    file.writelines(lines)
            except OSError as error:
                raise LiquidError(
                    f"{self._answers}: can't be written ({error.strerror}). Make room and run the "
                    "same command again; what is there is kept."
                ) from error
        return [self._texts[key] for key in keys]

    def pictures(
        self, keys: Sequence[str], make: Callable[[list[int]], list[Image.Image]]
    ) -> list[Image.Image]:
        """The pictures under some keys: kept ones from disk, the others made in one call and kept.

        Args:
            keys: File names without suffix, unique in the task; "/" makes folders.
            make: Given the positions of the missing ones, returns their pictures in that order.
        """
        if self.folder is None:
            return make(list(range(len(keys))))
        paths = [self.folder / f"{key}.png" for key in keys]
        self._start()
        missing = [i for i, path in enumerate(paths) if not path.is_file()]
        for i, image in zip(missing, make(missing) if missing else [], strict=True):
            with files.atomic_file(paths[i]) as temporary:
                image.save(temporary, format="PNG")
        return [pixels.open_image(path) for path in paths]

    def finish(self, report: Report) -> None:
        """Write ``result.json`` beside the answers."""
        if self.folder is not None:
            self._start()
            with files.atomic_file(self.folder / "result.json") as temporary:
                temporary.write_text(
                    json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a task works with."""

    data: Path
    """Folder of the real data."""
    n: int
    """Wanted size of each sample."""
    seed: int
    """Seed of samples and pictures."""
    batch: int
    """Pictures drawn or read at a time."""
    checkpoint: Path
    """Checkpoint folder."""
    baseline: Path | None
    """Another language model to compare with, or None."""
    out: Path | None
    """Folder for files, or None."""
    device: str | None
    """Device name; None chooses."""
    sampling: Mapping[str, float]
    """Fields of ``SamplingConfig`` that replace the checkpoint's own."""
    model: Callable[[], Model]
    """Loads the model at its first call and returns the same one afterwards."""
    journal: Journal
    """Answers kept over an interruption."""
    report: Report
    """Where figures go."""
    progress: Callable[[str, int, int], None]
    """Told what is being done, how many are done, and of how many."""

    def chunks(self, what: str, items: Sequence[T]) -> Iterator[tuple[int, Sequence[T]]]:
        """Cut items into batches and tell the progress.

        Yields:
            The position of the first item, and the items of a batch.
        """
        for start in range(0, len(items), self.batch):
            self.progress(what, start, len(items))
            yield start, items[start : start + self.batch]
        self.progress(what, len(items), len(items))

    def chosen_sampling(self) -> SamplingConfig:
        """The checkpoint's sampling with this run's changes; also noted in the report's settings.

        Raises:
            ConfigError: A changed value is out of its range.
        """
        chosen = replace(self.model().sampling, **cast("dict[str, Any]", self.sampling))
        self.report.settings["sampling"] = asdict(chosen)
        return chosen
