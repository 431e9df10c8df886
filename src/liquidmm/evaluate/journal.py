"""Answers and images of a task, saved so that an interrupted run can be resumed."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from liquidmm.errors import ConfigError, LiquidError
from liquidmm.evaluate.report import Report
from liquidmm.files import atomic_file, write_text
from liquidmm.image_tokenizer.images import open_image

_SETTINGS = "settings.json"
_ANSWERS = "answers.jsonl"


class Journal:
    """The answers and images of one task."""

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        """Open the folder of an earlier run, or prepare a new one; None keeps answers in memory.

        ``settings`` are all settings that affect the answers.

        Raises:
            ConfigError: The folder contains a run with other settings.
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
                f"{folder}: contains a run with other settings ({', '.join(changed)}). "
                "Choose another folder with --out, or remove it."
            )
        self._read(folder / _ANSWERS)

    def texts(self, keys: Sequence[str], make: Callable[[list[int]], list[str]]) -> list[str]:
        """Return the answers for the keys; create missing ones in one call and keep them.

        Args:
            keys: Keys that are unique in the task.
            make: Returns the answers at the given positions of `keys`, in that order.

        Raises:
            LiquidError: The answers cannot be written.
        """
        missing = [i for i, key in enumerate(keys) if key not in self._texts]
        lines = []
        for i, text in zip(missing, make(missing) if missing else [], strict=True):
            self._texts[keys[i]] = text
            lines.append(json.dumps({"key": keys[i], "text": text}, ensure_ascii=False) + "\n")
        if self.folder is not None and lines:
            self._start(self.folder)
            path = self.folder / _ANSWERS
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(lines)
            except OSError as error:
                raise LiquidError(
                    f"{path}: cannot be written ({error.strerror}). Free some space and run the "
                    "same command again; the answers so far are kept."
                ) from error
        return [self._texts[key] for key in keys]

    def images(
        self, keys: Sequence[str], make: Callable[[list[int]], list[Image.Image]]
    ) -> list[Image.Image]:
        """Return the images for the keys; create missing ones in one call and keep them.

        Args:
            keys: File names without suffix, unique in the task; "/" creates folders.
            make: Returns the images at the given positions of `keys`, in that order.
        """
        if self.folder is None:
            return make(list(range(len(keys))))
        paths = [self.folder / f"{key}.png" for key in keys]
        self._start(self.folder)
        missing = [i for i, path in enumerate(paths) if not path.is_file()]
        for i, image in zip(missing, make(missing) if missing else [], strict=True):
            with atomic_file(paths[i]) as temporary:
                image.save(temporary, format="PNG")
        return [open_image(path) for path in paths]

    def finish(self, report: Report) -> None:
        """Write ``result.json`` next to the answers."""
        if self.folder is not None:
            self._start(self.folder)
            text = json.dumps(report.to_dict(), indent=2) + "\n"
            write_text(self.folder / "result.json", text)

    def _start(self, folder: Path) -> None:
        # Settings are written with the first answer, so a failed start leaves no files.
        if not (folder / _SETTINGS).is_file():
            write_text(folder / _SETTINGS, json.dumps(self._settings, indent=2) + "\n")

    def _read(self, path: Path) -> None:
        """Read the answers of an earlier run and drop an incomplete last line."""
        if not path.is_file():
            return
        *complete, _ = path.read_text(encoding="utf-8").split("\n")
        self._texts = {row["key"]: row["text"] for row in map(json.loads, complete)}
        write_text(path, "".join(line + "\n" for line in complete))
