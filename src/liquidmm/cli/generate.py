"""`liquid generate`: from words, and maybe pictures, to picture files; or a file of jobs.

Contract: prints the path of every file it wrote, one per line; with `--jobs` a JSON object for each
answer. A file appears whole or not at all, and one that exists is replaced. The same seed and
settings give the same picture. A job that is wrong is told in its line, and the others are done;
then the exit code is 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from liquidmm.cli.options import (
    Size,
    check_picture_path,
    load_model,
    model_options,
    save_picture,
)
from liquidmm.errors import ConfigError, DataError, LiquidError

if TYPE_CHECKING:
    from liquidmm.generate.engine import Progress
    from liquidmm.generate.jobs import Job
    from liquidmm.generate.liquid import Liquid

_MODEL = ("checkpoint", "image_tokenizer", "device", "weights", "window")
_SETTINGS = ("size", "seed", "guidance", "temperature", "top_k", "top_p")


@click.command("generate")
@click.argument("prompt", required=False)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out.png"),
    show_default=True,
    help="File to write, with --jobs a folder; what exists is replaced.",
)
@click.option("-n", "n", type=int, default=1, show_default=True, help="Pictures, as out-1.png, ...")
@click.option("--grid", is_flag=True, help="Write all pictures into one file, side by side.")
@click.option("--size", type=Size(), help="A size the model was trained on; else its first.")
@click.option("--seed", type=int, default=0, show_default=True, help="Picture i takes seed + i.")
@click.option("--guidance", type=float, help="How closely to follow the prompt; 1 is unguided.")
@click.option("--temperature", type=float, help="Below 1 is bolder, above 1 is wilder.")
@click.option("--top-k", type=int, help="Draw from the k likeliest codes; 0 is off.")
@click.option("--top-p", type=float, help="Draw from the likeliest share p of codes; 1 is off.")
@click.option(
    "--image",
    "images",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A picture the prompt is about, where the model was trained on that; may be repeated.",
)
@click.option(
    "--preview", type=int, metavar="ROWS", help="Write the file after so many rows of codes, too."
)
@click.option(
    "--window",
    type=int,
    default=0,
    metavar="CODES",
    help="Draw a single picture so many codes at a time at most, by speculation: the same picture, "
    "sooner where the model is sure of itself.",
)
@click.option(
    "--jobs",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Do all jobs of a file at once, one JSON object a line (docs/generation.md).",
)
@model_options
def command(**options: Any) -> None:
    """Draw a picture from words.

    Settings that are not given are those the model was measured with.
    """
    model = {name: options.pop(name) for name in _MODEL}
    if options["jobs"] is not None:
        _check_alone(options)
        _do_jobs(options["jobs"], options["out"], model)
        return
    job = _job(options)
    paths = _paths(options["out"], job.n, grid=options["grid"])
    _check(job)
    liquid = load_model(**model)
    if job.preview_rows:
        _draw_with_previews(liquid, job, paths[0])
        return
    images = _draw(liquid, job)
    if options["grid"]:
        from liquidmm.image_tokenizer.images import contact_sheet

        images = [contact_sheet(images, columns=math.ceil(math.sqrt(len(images))))]
    for image, path in zip(images, paths, strict=True):
        save_picture(image, path)
        click.echo(path)


def _job(options: dict[str, Any]) -> Job:
    from liquidmm.generate.jobs import Job

    return Job(
        prompt=options["prompt"] or "",
        images=options["images"],
        n=options["n"],
        preview_rows=options["preview"] or 0,
        **{name: options[name] for name in _SETTINGS},
    )


def _paths(out: Path, count: int, *, grid: bool) -> list[Path]:
    if count < 1:
        raise ConfigError(f"n: must be at least 1 ({count}). Ask for one picture or more.")
    check_picture_path(out)
    if count == 1 or grid:
        return [out]
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, count + 1)]


def _check(job: Job) -> None:
    """Find what is wrong before the model is loaded."""
    from liquidmm.generate.sampling import SamplingConfig

    if not job.prompt.strip():
        raise DataError("prompt: is empty. Describe the picture in a few words.")
    names = ("guidance", "temperature", "top_k", "top_p")
    given = {name: getattr(job, name) for name in names}
    SamplingConfig(**{name: value for name, value in given.items() if value is not None})
    if job.preview_rows < 0:
        raise ConfigError(f"preview: must be at least 1 ({job.preview_rows}). Give rows of codes.")
    if job.preview_rows and job.n > 1:
        raise ConfigError(f"preview: shows one picture, and n is {job.n}. Ask for one.")


def _draw(liquid: Liquid, job: Job) -> list[Any]:
    with _bar() as progress:
        done = sorted(liquid.run_as_done([job], progress), key=lambda one: one[1])
    images: list[Any] = []
    for _, _, reply in done:
        if reply.error is not None:
            raise reply.error
        images += reply.images
    return images


def _draw_with_previews(liquid: Liquid, job: Job, path: Path) -> None:
    from liquidmm.generate.reply import TextPiece

    for piece in liquid.stream_job(job):
        assert not isinstance(piece, TextPiece), "a picture has no text"
        save_picture(piece.image, path)
    click.echo(path)


def _check_alone(options: dict[str, Any]) -> None:
    """Refuse options that stand in the jobs themselves."""
    given = click.get_current_context().get_parameter_source
    for name in (*_SETTINGS, "prompt", "n", "grid", "images", "preview"):
        source = given(name)
        if options[name] and source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"jobs: '{name}' stands beside it. Write it into the file's lines.")


def _do_jobs(file: Path, out: Path, model: dict[str, Any]) -> None:
    """Do the jobs of a file; a line that is wrong is told like a job that is."""
    jobs: dict[int, Job] = {}
    failed = False
    folder = Path("outputs") if out == Path("out.png") else out
    for number, line in _lines(file):
        try:
            jobs[number] = _read_job(line, f"{file}:{number}")
        except LiquidError as error:
            failed = True
            _tell({"job": number, "error": str(error)})
    if jobs:
        numbers = list(jobs)
        liquid = load_model(**model)
        with _bar() as progress:
            for place, sample, reply in liquid.run_as_done(list(jobs.values()), progress):
                number = numbers[place]
                if reply.error is not None:
                    failed = True
                    _tell({"job": number, "error": str(reply.error)})
                    continue
                paths = []
                for index, image in enumerate(reply.images):
                    path = folder / f"{number:04d}-{sample + 1}-{index + 1}.png"
                    save_picture(image, path)
                    paths.append(str(path))
                told = {"job": number, "sample": sample + 1, "text": reply.text}
                _tell({**told, "images": paths, "finish": reply.finish})
    if failed:
        click.get_current_context().exit(1)


def _lines(file: Path) -> list[tuple[int, str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: can't be read ({error}). Check the path.") from error
    found = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise DataError(f"{file}: holds no job. Write one JSON object a line.")
    return found


def _read_job(line: str, where: str) -> Job:
    from liquidmm.config import from_dict
    from liquidmm.generate.jobs import Job

    try:
        data = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: is no JSON ({error}). Correct the line.") from error
    return from_dict(Job, data, where)


def _tell(found: dict[str, Any]) -> None:
    click.echo(json.dumps(found, ensure_ascii=False))


@contextmanager
def _bar() -> Iterator[Progress]:
    """Show on stderr how many codes are drawn."""
    from tqdm import tqdm

    with tqdm(unit="code", leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
