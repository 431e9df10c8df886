import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from liquidmm.cli import main
from liquidmm.data.shard_file import Row
from liquidmm.image_tokenizer.images import to_image


def test_validate_names_the_damaged_shard(tmp_path, write_folder):
    rows = [Row(kind="text", key="t", text="hello")]
    folder = write_folder(tmp_path / "out", rows, rows)
    result = CliRunner().invoke(main, ["data", "validate", str(folder)])
    assert (result.exit_code, result.stdout) == (
        0,
        f"{folder}: 2 shards, all as they were written\n",
    )
    path = folder / "shard-00001.arrow"
    damaged = bytearray(path.read_bytes())
    damaged[700] ^= 1
    path.write_bytes(damaged)
    result = CliRunner().invoke(main, ["data", "validate", str(folder)])
    assert result.exit_code == 1
    assert f"{path}: has SHA-256" in result.stderr
    assert "It was made from part 1: remove it" in result.stderr
    assert f"error: {folder}: 1 of 2 shards are damaged, see above." in result.stderr


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, checkpoint, write_folder):
    """Two pairs and a chat about a third picture, as the tiny checkpoint's tokenizer made them."""
    codes = np.random.default_rng(0).integers(0, 16, (3, 4, 4)).astype(np.uint16)
    rows = [
        *[
            Row(kind="image_text", key=f"{n}", license="MIT", captions=("a",), pictures=(codes[n],))
            for n in range(2)
        ],
        Row(kind="chat", key="no picture"),
        Row(kind="chat", key="chat", pictures=(codes[2],)),
    ]
    path = tmp_path_factory.mktemp("encoded") / "shards"
    return write_folder(path, rows, fingerprint=checkpoint.image_tokenizer.fingerprint), codes


def test_sheet_shows_what_the_codes_are(encoded, checkpoint, checkpoint_folder, tmp_path):
    folder, codes = encoded
    for tokenizer in (checkpoint_folder, checkpoint_folder / "image_tokenizer"):
        out = tmp_path / "sheet.png"
        arguments = ["data", "inspect", folder, "--sheet", out, "--tokenizer", tokenizer]
        result = CliRunner().invoke(main, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        assert "pictures         3\n" in result.stdout
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


def test_sheet_of_another_tokenizer(encoded, tmp_path, write_folder):
    out = tmp_path / "sheet.png"
    result = CliRunner().invoke(main, ["data", "inspect", str(encoded[0]), "--sheet", str(out)])
    assert result.exit_code == 1
    assert "was encoded with the image tokenizer" in result.stderr
    assert "Give the one it was encoded with (--tokenizer)." in result.stderr
    assert not out.exists()


def test_sheet_without_pictures(checkpoint, checkpoint_folder, tmp_path, write_folder):
    folder = write_folder(
        tmp_path / "texts",
        [Row(kind="text", key="t", text="a")],
        fingerprint=checkpoint.image_tokenizer.fingerprint,
    )
    arguments = ["data", "inspect", folder, "--sheet", "s.png", "--tokenizer", checkpoint_folder]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 1
    assert "holds no pictures. Leave --sheet out." in result.stderr
