from pathlib import Path

import pytest

from liquidmm.errors import ConfigError, DataError
from liquidmm.icons.icon_sets import check_license, color_styles, read_collections


def test_check_license_rejects_by_license_brand_and_name(tarballs: tuple[Path, Path]) -> None:
    collections = read_collections(tarballs[0])
    assert color_styles(collections) == ("noto", "things", "twemoji")
    assert check_license(collections, "openmoji", share_alike=True).license == "CC-BY-SA-4.0"
    rejected = {
        "openmoji": "openmoji.*CC-BY-SA-4.0.*--share-alike",
        "logos": "trademarks",
        "skill-icons": "trademarks",
        "paid": "paid.*CC-BY-NC-4.0",
        "notto": "Did you mean 'noto'?",
    }
    for style, message in rejected.items():
        with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
            check_license(collections, style, share_alike=False)
    with pytest.raises(ConfigError, match="trademarks"):
        check_license(collections, "logos", share_alike=True)


def test_tarball_damaged_wrong_or_missing_rejected(
    tarballs: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.tgz"
    broken.write_bytes(tarballs[0].read_bytes()[:200])
    with pytest.raises(DataError, match="broken.tgz: cannot be read"):
        read_collections(broken)
    with pytest.raises(DataError, match=r"emojibase.tgz.*package/collections.json"):
        read_collections(tarballs[1])
    with pytest.raises(DataError, match="missing.tgz: cannot be read"):
        read_collections(tmp_path / "missing.tgz")
