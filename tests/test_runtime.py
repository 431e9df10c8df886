import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from liquidmm.errors import ConfigError, LiquidError, MissingExtraError
from liquidmm.files import atomic_file, atomic_folder
from liquidmm.runtime import generator, get_logger, require_extra, resolve_device, resolve_dtype


def names(folder):
    return sorted(child.name for child in folder.iterdir())


def test_device():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(None).type in {"cpu", "cuda", "mps"}
    with pytest.raises(ConfigError, match="device: 'cdua' is no device. Did you mean 'cuda'?"):
        resolve_device("cdua")
    with pytest.raises(ConfigError, match="'meta' is no device"):
        resolve_device("meta")


def test_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device: 'cuda' is not available here. Choose one of"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ConfigError, match="'cuda:1' is not available"):
        resolve_device("cuda:1")


def test_dtype(monkeypatch):
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) is torch.float32
    assert resolve_dtype("float16", cpu) is torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert resolve_dtype("auto", torch.device("cuda")) is torch.bfloat16
    with pytest.raises(ConfigError, match="dtype: 'bf16' is unknown."):
        resolve_dtype("bf16", cpu)


def test_generators_are_their_own():
    first, second = generator(3), generator(3)
    torch.rand(5)
    assert torch.equal(torch.rand(4, generator=first), torch.rand(4, generator=second))
    with pytest.raises(ConfigError, match="seed"):
        generator(-1)


def test_require_extra():
    assert require_extra("json", "x").__name__ == "json"
    with pytest.raises(MissingExtraError, match=r'pip install "liquidmm\[gguf\]"'):
        require_extra("no_such_package_here.sub", "gguf")


def test_require_shows_other_failures(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_package_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_here") as caught:
        require_extra("needs_more", "x")
    assert not isinstance(caught.value, MissingExtraError)


def test_folder_appears_whole(tmp_path):
    target = tmp_path / "a" / "b"
    with atomic_folder(target) as temporary:
        (temporary / "x").write_text("1")
        (temporary / "x").chmod(0o600)
        assert not target.exists()
    assert names(target) == ["x"]
    assert names(target.parent) == ["b"]
    assert (target / "x").stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert target.stat().st_mode & 0o777 == 0o777 & ~_umask()


def test_folder_replaces_only_when_told(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with atomic_folder(target) as temporary:
        (temporary / "old").touch()
    with (
        pytest.raises(LiquidError, match="out: exists already"),
        atomic_folder(target),
    ):
        pass
    with atomic_folder(target, overwrite=True) as temporary:
        (temporary / "new").touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError, LiquidError])
def test_failure_leaves_nothing_behind(tmp_path, kind):
    target = tmp_path / "out"
    with pytest.raises(kind), atomic_folder(target) as temporary:
        (temporary / "half").touch()
        raise kind
    with pytest.raises(kind), atomic_file(tmp_path / "x.png") as temporary:
        temporary.write_text("half")
        raise kind
    assert names(tmp_path) == []


def test_failed_replacement_keeps_the_old(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(ZeroDivisionError), atomic_folder(target, overwrite=True):
        raise ZeroDivisionError
    assert names(target) == ["old"]
    assert names(tmp_path) == ["out"]


def test_file(tmp_path):
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


def test_full_disk_is_one_line(tmp_path):
    with (
        pytest.raises(LiquidError, match=r"out: can't be written \(No space left on device\)"),
        atomic_folder(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_a_folder_that_takes_no_file_is_one_line_also_by_a_relative_path(tmp_path, monkeypatch):
    def refuse(**names):
        file = Path(names["dir"]).absolute() / (names["prefix"] + names["suffix"])
        raise PermissionError(errno.EACCES, "Permission denied", str(file))  # as tempfile says it

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    expected = r"^out\.png: can't be written \(Permission denied\)"
    with pytest.raises(LiquidError, match=expected), atomic_file(Path("out.png")):
        pass


def test_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(LiquidError, match=r"can't be written \((File exists|Not a directory)\)"),
        atomic_file(tmp_path / "file" / "x"),
    ):
        pass


def test_errors_of_reading_keep_their_kind(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "out"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "/nowhere/input.png")
    with pytest.raises(OSError, match="not a model"), atomic_folder(tmp_path / "out"):
        raise OSError("not a model")


def test_safetensors_on_a_full_disk(tmp_path):
    # The limit on the size of a file stands in for a full disk: the same call of the system fails.
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
    assert "can't be written" in str(error) and "File too large" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert names(tmp_path) == []


def test_logger_writes_to_stderr_once(capsys):
    script = (
        "from liquidmm.runtime import get_logger\n"
        "get_logger('liquidmm.a').info('one'); get_logger('liquidmm.b').info('two')\n"
        "get_logger('liquidmm.a').debug('hidden')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == "one\ntwo\n"
    assert done.stdout == ""


def test_logger_can_be_captured(caplog):
    with caplog.at_level(logging.INFO):
        get_logger("liquidmm.test").info("seen")
    assert caplog.messages == ["seen"]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
