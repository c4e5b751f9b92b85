import os
import tempfile
from pathlib import Path

import pytest

from mlx_deltamem.files.temporary import ensure_temporary_folder


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.mark.parametrize("name", ["TMPDIR", "TMP", "TEMP", "TEMPDIR"])
@pytest.mark.parametrize("folder", ["/nowhere/at/all", "/dev/null", "/proc"])
def test_another_folder_is_named(name, folder, monkeypatch):
    monkeypatch.setenv(name, folder)
    with pytest.warns(UserWarning, match=f"{name} is {folder}, in which no file can be made; .* is used"):
        ensure_temporary_folder()
    assert Path(os.environ[name]).is_dir()
    ensure_temporary_folder()


def test_a_folder_that_is_there_is_kept(monkeypatch, tmp_path):
    ensure_temporary_folder()
    assert "TMPDIR" not in os.environ
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    ensure_temporary_folder()
    assert os.environ["TMPDIR"] == str(tmp_path)
    assert list(tmp_path.iterdir()) == []
