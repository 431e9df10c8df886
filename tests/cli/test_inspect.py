import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from liquidmm.cli import main
from liquidmm.data.samples import Sample
from liquidmm.image_tokenizer.images import to_image


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, checkpoint, write_folder):
    """Two pairs and a chat about a third image, encoded with the tiny checkpoint's tokenizer."""
    codes = np.random.default_rng(0).integers(0, 16, (3, 4, 4)).astype(np.uint16)
    samples = [
        *[
            Sample(
                kind="image_text",
                key=f"{n}",
                license="MIT",
                captions=("a",),
                image_codes=(codes[n],),
            )
            for n in range(2)
        ],
        Sample(kind="chat", key="no image"),
        Sample(kind="chat", key="chat", image_codes=(codes[2],)),
    ]
    path = tmp_path_factory.mktemp("encoded") / "shards"
    return write_folder(path, samples, fingerprint=checkpoint.image_tokenizer.fingerprint), codes


def test_inspect_sheet_shows_the_decoded_codes(encoded, checkpoint, checkpoint_folder, tmp_path):
    folder, codes = encoded
    for tokenizer in (checkpoint_folder, checkpoint_folder / "image_tokenizer"):
        out = tmp_path / "sheet.png"
        arguments = ["inspect", folder, "--sheet", out, "--tokenizer", tokenizer]
        result = CliRunner().invoke(main, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        assert "images           3\n" in result.stdout
        assert "MIT                      2\n" in result.stdout
        image = Image.open(out)
        # three cells of 16 x 16, enlarged 8 times, with gaps of 4 and lines of 12
        assert image.size == (3 * 132 + 4, 144 + 4)
        for number in range(3):
            wanted = to_image(
                checkpoint.image_tokenizer.decode(torch.tensor(codes[number][None].astype(int)))[0]
            )
            left = 4 + 132 * number
            cell = image.crop((left, 4, left + 128, 132)).resize((16, 16), Image.Resampling.NEAREST)
            assert np.array_equal(np.asarray(cell), np.asarray(wanted))


def test_inspect_sheet_other_tokenizer_is_rejected(encoded, tmp_path, write_folder):
    out = tmp_path / "sheet.png"
    result = CliRunner().invoke(main, ["inspect", str(encoded[0]), "--sheet", str(out)])
    assert result.exit_code == 1
    assert "encoded with the image tokenizer" in result.stderr
    assert "--tokenizer" in result.stderr
    assert not out.exists()


def test_inspect_sheet_without_images_is_rejected(
    checkpoint, checkpoint_folder, tmp_path, write_folder
):
    folder = write_folder(
        tmp_path / "texts",
        [Sample(kind="text", key="t", text="a")],
        fingerprint=checkpoint.image_tokenizer.fingerprint,
    )
    arguments = ["inspect", folder, "--sheet", "s.png", "--tokenizer", checkpoint_folder]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 1
    assert "contains no images. Remove --sheet." in result.stderr
