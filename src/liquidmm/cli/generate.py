"""`liquid generate`: generate images from a prompt, or answer the requests in a file.

The command prints the path of every file it writes, one per line, or with --batch-file one JSON
object per reply. Files are written atomically and replace existing ones. An invalid request gets an
error as its reply; the others are still answered, and the exit code is 1.
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
    check_image_path,
    load_model,
    model_options,
    save_image,
)
from liquidmm.errors import ConfigError, DataError, LiquidError

if TYPE_CHECKING:
    from liquidmm.generate.engine import Progress
    from liquidmm.generate.liquid import Liquid
    from liquidmm.generate.requests import GenerationRequest

_MODEL = ("checkpoint", "image_tokenizer", "device", "dtype", "quantize")
_SETTINGS = ("size", "seed", "guidance", "temperature", "top_k", "top_p")


@click.command("generate")
@click.argument("prompt", required=False)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out.png"),
    show_default=True,
    help="File to write, or with --batch-file a folder; existing files are replaced.",
)
@click.option(
    "-n", "n", type=int, default=1, show_default=True, help="Number of images (out-1.png, ...)."
)
@click.option("--grid", is_flag=True, help="Write all images into one file.")
@click.option("--size", type=Size(), help="One of the model's trained sizes.  [default: the first]")
@click.option("--seed", type=int, default=0, show_default=True, help="Image i uses seed + i.")
@click.option("--guidance", type=float, help="How closely to follow the prompt; 1 is off.")
@click.option("--temperature", type=float, help="Lower is more predictable, higher is more varied.")
@click.option("--top-k", type=int, help="Sample from the k most likely image tokens; 0 is off.")
@click.option(
    "--top-p",
    type=float,
    help="Sample from the most likely image tokens with total probability p; 1 is off.",
)
@click.option(
    "--image",
    "images",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Input image for the prompt, if the model was trained on such prompts; repeatable.",
)
@click.option(
    "--preview-every",
    type=int,
    metavar="ROWS",
    help="Also write the incomplete image after every ROWS rows of image tokens.",
)
@click.option(
    "--batch-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Answer all requests in a JSON Lines file.",
)
@model_options
def command(**options: Any) -> None:
    """Generate images from a prompt.

    Options that are not given use the checkpoint's defaults.
    """
    model = {name: options.pop(name) for name in _MODEL}
    if options["batch_file"] is not None:
        _check_alone(options)
        _run_file(options["batch_file"], options["out"], model)
        return
    request = _request(options)
    paths = _paths(options["out"], request.n, grid=options["grid"])
    liquid = load_model(**model)
    if request.preview_every:
        _generate_with_previews(liquid, request, paths[0])
        return
    images = _generate(liquid, request)
    if options["grid"]:
        from liquidmm.image_tokenizer.images import contact_sheet

        images = [contact_sheet(images, columns=math.ceil(math.sqrt(len(images))))]
    for image, path in zip(images, paths, strict=True):
        save_image(image, path)
        click.echo(path)


def _request(options: dict[str, Any]) -> GenerationRequest:
    """Check what can be checked without the model and return the request."""
    from liquidmm.generate.requests import GenerationRequest
    from liquidmm.generate.sampling import SamplingConfig
    from liquidmm.ranges import check_ranges

    request = GenerationRequest(
        prompt=options["prompt"] or "",
        images=options["images"],
        n=options["n"],
        preview_every=options["preview_every"] or 0,
        **{name: options[name] for name in _SETTINGS},
    )
    if not request.prompt.strip():
        raise DataError("prompt: is empty. Describe the image in a few words.")
    check_ranges(request)
    names = ("guidance", "temperature", "top_k", "top_p")
    given = {name: options[name] for name in names if options[name] is not None}
    SamplingConfig(**given)
    if request.preview_every and request.n > 1:
        raise ConfigError(f"--preview-every: works with one image, but -n is {request.n}.")
    return request


def _paths(out: Path, count: int, *, grid: bool) -> list[Path]:
    check_image_path(out)
    if count == 1 or grid:
        return [out]
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, count + 1)]


def _generate(liquid: Liquid, request: GenerationRequest) -> list[Any]:
    images: dict[int, Any] = {}
    with _progress_bar() as progress:
        for _, sample, reply in liquid.generate_as_completed([request], progress):
            if reply.error is not None:
                raise reply.error
            [images[sample]] = reply.images
    return [images[sample] for sample in sorted(images)]


def _generate_with_previews(liquid: Liquid, request: GenerationRequest, path: Path) -> None:
    from liquidmm.generate.outputs import TextPiece

    for piece in liquid.stream(request):
        assert not isinstance(piece, TextPiece)
        save_image(piece.image, path)
    click.echo(path)


def _check_alone(options: dict[str, Any]) -> None:
    """Reject options that belong in the file's requests."""
    source_of = click.get_current_context().get_parameter_source
    for name in (*_SETTINGS, "prompt", "n", "grid", "images", "preview_every"):
        source = source_of(name)
        if options[name] and source is not None and source.name == "COMMANDLINE":
            shown = {"prompt": "PROMPT", "n": "-n", "images": "--image"}.get(
                name, f"--{name.replace('_', '-')}"
            )
            raise ConfigError(
                f"{shown}: cannot be combined with --batch-file; set it per request in the file."
            )


def _run_file(file: Path, out: Path, model: dict[str, Any]) -> None:
    """Answer the requests in a file; report a malformed line like an invalid request."""
    requests: dict[int, GenerationRequest] = {}
    failed = False
    folder = Path("outputs") if out == Path("out.png") else out
    for number, line in _lines(file):
        try:
            requests[number] = _parse_request(line, f"{file}:{number}")
        except LiquidError as error:
            failed = True
            _print({"request": number, "error": str(error)})
    if requests:
        numbers = list(requests)
        liquid = load_model(**model)
        with _progress_bar() as progress:
            replies = liquid.generate_as_completed(list(requests.values()), progress)
            for index, sample, reply in replies:
                number = numbers[index]
                if reply.error is not None:
                    failed = True
                    _print({"request": number, "error": str(reply.error)})
                    continue
                paths = [
                    folder / f"{number:04d}-{sample + 1}-{place}.png"
                    for place in range(1, len(reply.images) + 1)
                ]
                for image, path in zip(reply.images, paths, strict=True):
                    save_image(image, path)
                found = {"request": number, "sample": sample + 1, "text": reply.text}
                _print({**found, "images": [str(path) for path in paths], "finish": reply.finish})
    if failed:
        click.get_current_context().exit(1)


def _lines(file: Path) -> list[tuple[int, str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Check the path.") from error
    found = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise DataError(f"{file}: contains no requests. Write one JSON object per line.")
    return found


def _parse_request(line: str, where: str) -> GenerationRequest:
    from liquidmm.config import from_dict
    from liquidmm.generate.requests import GenerationRequest

    try:
        data = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: is not valid JSON ({error}). Correct the line.") from error
    return from_dict(GenerationRequest, data, where)


def _print(found: dict[str, Any]) -> None:
    click.echo(json.dumps(found, ensure_ascii=False))


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """Show on stderr how many image tokens have been generated."""
    from tqdm import tqdm

    with tqdm(unit="token", leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
