"""Every task on generated icons, with a model that knows the icons by heart."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from liquidmm.errors import ConfigError


def test_icons_judged_in_three_parts(evaluate: Any, model: Any) -> None:
    report = evaluate("icons", limit=5, seed=7)
    result = report.to_dict()
    assert list(result["figures"])[:5] == [
        "trained",
        "trained_features",
        "held_out_pairs",
        "held_out_pairs_features",
        "unguided",
    ]
    assert result["figures"]["trained"] == {"value": 100.0, "unit": "%"}
    assert result["figures"]["held_out_pairs"] == {"value": 100.0, "unit": "%"}
    assert result["figures"]["chance"]["value"] == pytest.approx(100 / 6, abs=1e-4)
    assert result["figures"]["n"]["value"] == 5
    assert result["counts"]["held_out_pairs"]["n"] == 1
    # The same blank for every prompt is right for at most one concept in each style.
    assert result["counts"]["unguided"]["right"] <= 2
    assert [seed for _, seed, _ in model.generated] == [7, 8, 9, 10, 11, 7, 7, 8, 9, 10, 11]
    assert [guidance for _, _, guidance in model.generated] == [3.0] * 6 + [1.0] * 5
    assert model.generated[0][0] == model.generated[6][0]
    assert result["settings"]["sampling"]["guidance"] == 3.0


def test_icons_guidance_and_sampling_reported(evaluate: Any, model: Any) -> None:
    report = evaluate("icons", limit=1, guidance=5.0)
    assert [guidance for _, _, guidance in model.generated] == [5.0, 5.0, 1.0]
    assert report.settings["sampling"]["guidance"] == 5.0


def test_contact_sheet_has_two_blocks_of_three_rows(evaluate: Any, tmp_path: Path) -> None:
    out = tmp_path / "docs"
    report = evaluate("contact-sheet", out=out)
    assert report.settings["file"] == str(out / "contact-sheet.png")
    with Image.open(out / "contact-sheet.png") as sheet:
        # Two blocks of three rows, twelve columns of 96 pixels and their gaps.
        assert sheet.width > 12 * 96
        assert sheet.height > 6 * 96
    assert [path.name for path in out.iterdir()] == ["contact-sheet.png"]


def test_contact_sheet_without_out_rejected(evaluate: Any) -> None:
    with pytest.raises(ConfigError, match="out.*--out"):
        evaluate("contact-sheet")
