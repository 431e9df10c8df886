import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from liquidmm.errors import LiquidError
from liquidmm.files import atomic_file, atomic_folder


def names(folder):
    return sorted(child.name for child in folder.iterdir())


def test_atomic_folder_appears_complete(tmp_path):
    target = tmp_path / "a" / "b"
    with atomic_folder(target) as temporary:
        (temporary / "x").write_text("1")
        (temporary / "x").chmod(0o600)
        assert not target.exists()
    assert names(target) == ["x"]
    assert names(target.parent) == ["b"]
    assert (target / "x").stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert target.stat().st_mode & 0o777 == 0o777 & ~_umask()


def test_atomic_folder_replaces_only_with_overwrite(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with atomic_folder(target) as temporary:
        (temporary / "old").touch()
    with (
        pytest.raises(LiquidError, match="out: already exists"),
        atomic_folder(target),
    ):
        pass
    with atomic_folder(target, overwrite=True) as temporary:
        (temporary / "new").touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError, LiquidError])
def test_exception_leaves_no_files(tmp_path, kind):
    target = tmp_path / "out"
    with pytest.raises(kind), atomic_folder(target) as temporary:
        (temporary / "half").touch()
        raise kind
    with pytest.raises(kind), atomic_file(tmp_path / "x.png") as temporary:
        temporary.write_text("half")
        raise kind
    assert names(tmp_path) == []


def test_exception_keeps_the_old_folder(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(ZeroDivisionError), atomic_folder(target, overwrite=True):
        raise ZeroDivisionError
    assert names(target) == ["old"]
    assert names(tmp_path) == ["out"]


def test_atomic_file_replaces_and_keeps_suffix(tmp_path):
    target = tmp_path / "a" / "x.png"
    for content in ("1", "2"):
        with atomic_file(target) as temporary:
            assert temporary.suffix == ".png"
            temporary.write_text(content)
        assert target.read_text() == content
    assert names(target.parent) == ["x.png"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()
    with pytest.raises(LiquidError, match="is a folder"), atomic_file(tmp_path):
        pass


def test_full_disk_is_reported(tmp_path):
    with (
        pytest.raises(LiquidError, match=r"out: .*\(No space left on device\)"),
        atomic_folder(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_read_only_folder_is_reported_with_relative_path(tmp_path, monkeypatch):
    def refuse(**names):
        file = Path(names["dir"]).absolute() / (names["prefix"] + names["suffix"])
        raise PermissionError(errno.EACCES, "Permission denied", str(file))  # as tempfile raises it

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    expected = r"^out\.png: .*\(Permission denied\)"
    with pytest.raises(LiquidError, match=expected), atomic_file(Path("out.png")):
        pass


def test_parent_that_is_a_file_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(LiquidError, match=r"cannot be written \((File exists|Not a directory)\)"),
        atomic_file(tmp_path / "file" / "x"),
    ):
        pass


def test_read_errors_are_not_changed(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "out"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "/nowhere/input.png")
    with pytest.raises(OSError, match="not a model"), atomic_folder(tmp_path / "out"):
        raise OSError("not a model")


def test_safetensors_error_on_full_disk_is_reported(tmp_path):
    # a limit on the file size makes the same system call fail as a full disk
    script = f"""
import resource, torch
from safetensors.torch import save_file
from pathlib import Path
from liquidmm.errors import LiquidError
from liquidmm.files import atomic_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with atomic_folder(Path({str(tmp_path / "out")!r})) as folder:
        save_file({{"x": torch.zeros(100_000)}}, folder / "model.safetensors")
except LiquidError as error:
    assert "cannot be written" in str(error) and "File too large" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert names(tmp_path) == []


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
