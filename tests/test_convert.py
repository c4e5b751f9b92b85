import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_deltamem import load_adapter, save_adapter
from mlx_deltamem.adapters.folder import TORCH_FILE
from mlx_deltamem.adapters.grow import with_key_shift, with_read_gates
from mlx_deltamem.commands.convert import convert
from mlx_deltamem.core.adapter import WEIGHTS_FILE
from mlx_deltamem.core.config import CONFIG_FILE
from tests.command_line import assert_refused, run_command
from tests.conftest import GOLDENS, REPO, adapter
from tests.core.test_adapter import same

FOLDERS = sorted((GOLDENS / "adapters").iterdir())


def storages(path: Path) -> dict[str, bytes]:
    """The numbers of every tensor of a .pt file, as they lie in it."""
    with zipfile.ZipFile(path) as archive:
        return {
            name.partition("/")[2]: archive.read(name)
            for name in archive.namelist()
            if name.partition("/")[2][:5] == "data/"
        }


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_to_ours_and_back_is_equal_to_the_byte(folder, tmp_path):
    convert(str(folder), tmp_path / "ours")
    convert(str(tmp_path / "ours"), tmp_path / "torch", to="torch")
    assert same(load_adapter(folder), load_adapter(tmp_path / "torch"))
    before, after = storages(folder / TORCH_FILE), storages(tmp_path / "torch" / TORCH_FILE)
    assert sorted(before.values()) == sorted(after.values())
    assert load_adapter(tmp_path / "torch").config == load_adapter(folder).config


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_command_says_what_it_read_and_wrote(dtype, tmp_path):
    result = run_command("convert", "--torch-path", adapter(), "--mlx-path", tmp_path / "out", "--dtype", dtype)
    assert result.returncode == 0, result.stderr
    assert f"Read {adapter()}: delta_mem_adapter.pt (the PyTorch reference's format)" in result.stdout
    assert "10,776 parameters in 3 layers" in result.stdout
    found = load_adapter(tmp_path / "out")
    assert {str(tensor.dtype) for tensor in found.weights.values()} == {f"mlx.core.{dtype}"}


@pytest.mark.slow
def test_to_torch_reads_the_mlx_path_and_writes_the_torch_path(tmp_path):
    run_command("convert", "--torch-path", adapter(), "--mlx-path", tmp_path / "mlx")
    result = run_command("convert", "--to", "torch", "--mlx-path", tmp_path / "mlx", "--torch-path", tmp_path / "torch")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "torch").iterdir()) == [TORCH_FILE, CONFIG_FILE]
    assert same(load_adapter(tmp_path / "torch"), load_adapter(adapter()))


@pytest.mark.parametrize(
    ("grow", "field"), [(with_read_gates, "read_gate"), (lambda adapter: with_key_shift(adapter, 1.0), "key_shift")]
)
def test_a_field_that_the_reference_does_not_know_keeps_an_adapter_from_it(grow, field, tmp_path):
    save_adapter(grow(load_adapter(adapter())), tmp_path / "grown")
    with pytest.raises(ValueError, match=f"grown has {field}, which the reference does not know; use it with MLX only"):
        convert(str(tmp_path / "grown"), tmp_path / "torch", to="torch")
    assert not (tmp_path / "torch").exists()
    convert(str(tmp_path / "grown"), tmp_path / "again")
    assert same(load_adapter(tmp_path / "again"), load_adapter(tmp_path / "grown"))


def test_heads_that_the_reference_expects_are_not_left_out(tmp_path):
    whole = load_adapter(adapter())
    weights = {name: tensor for name, tensor in whole.weights.items() if not name.endswith("delta_k_proj")}
    save_adapter(replace(whole, weights=weights), tmp_path / "theirs")
    with pytest.raises(ValueError, match="theirs lacks delta_k_proj, which the reference expects"):
        convert(str(tmp_path / "theirs"), tmp_path / "torch", to="torch")
    assert not (tmp_path / "torch").exists()


def hub_repo(home: Path, name: str, source: str) -> None:
    """Put a folder where the Hub's client keeps a repo it has downloaded."""
    repo = home / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(source, repo / "snapshots" / ("a" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)


@pytest.mark.slow
def test_a_downloaded_repo_is_converted_once(tmp_path):
    hub_repo(tmp_path, "someone/memory", adapter())
    home = {"HF_HOME": str(tmp_path)}
    kept = tmp_path / "mlx_deltamem" / "models--someone--memory" / ("a" * 40)
    first = run_command("convert", "--torch-path", "someone/memory", "--mlx-path", tmp_path / "a", **home)
    assert "delta_mem_adapter.pt" in first.stdout, first.stderr
    assert (kept / WEIGHTS_FILE).is_file()
    second = run_command("convert", "--torch-path", "someone/memory@main", "--mlx-path", tmp_path / "b", **home)
    assert f"Read someone/memory@main: {WEIGHTS_FILE}" in second.stdout, second.stderr
    assert same(load_adapter(tmp_path / "a"), load_adapter(tmp_path / "b"))


class _Attack:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.system, (f"mkdir {self.folder}",)


def bad_inputs(folder: Path) -> dict[str, tuple[str, str]]:
    """By name: what to give as --torch-path, and what the error must say."""
    good = Path(adapter())
    cases = {
        "missing": (str(folder / "nothing"), "there is no folder"),
        "no repo": ("someone/nothing", "is not a folder on this machine"),
        "three parts": ("a/b/c", "there is no folder a/b/c"),
        "a file": (str(good / TORCH_FILE), "is a file; expected the folder of an adapter"),
    }
    for name, make, message in (
        ("no config", lambda f: (f / CONFIG_FILE).unlink(), f"lacks {CONFIG_FILE}"),
        ("no weights", lambda f: (f / TORCH_FILE).unlink(), f"lacks {WEIGHTS_FILE}"),
        ("truncated", lambda f: (f / TORCH_FILE).write_bytes((good / TORCH_FILE).read_bytes()[:9000]), TORCH_FILE),
        ("no zip", lambda f: (f / TORCH_FILE).write_bytes(b"hello"), TORCH_FILE),
        ("attack", lambda f: attack(f / TORCH_FILE, folder / "pwned"), "system; only tensors are read, nothing was"),
        ("wrong type", lambda f: (f / CONFIG_FILE).write_text('{"rank": "eight"}'), "rank is 'eight'; expected"),
        ("wrong rank", lambda f: (f / CONFIG_FILE).write_text('{"rank": 16}'), "has shape (8, 64), expected (16, 64)"),
    ):
        target = folder / name.replace(" ", "_")
        target.mkdir()
        for file in (TORCH_FILE, CONFIG_FILE):
            shutil.copyfile(good / file, target / file)
        make(target)
        cases[name] = (str(target), message)
    return cases


def attack(path: Path, marker: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": _Attack(marker)}, protocol=2))
        archive.writestr("archive/byteorder", "little")


@pytest.mark.slow
def test_bad_inputs_are_refused_and_nothing_is_written(tmp_path):
    for name, (source, message) in bad_inputs(tmp_path).items():
        result = run_command(
            "convert", "--torch-path", source, "--mlx-path", tmp_path / "out", HF_HOME=str(tmp_path / "hf")
        )
        assert_refused(result, message)
        assert not (tmp_path / "out").exists(), name
    assert not (tmp_path / "pwned").exists()


@pytest.mark.slow
def test_an_existing_folder_is_left_as_it_was(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    result = run_command("convert", "--torch-path", adapter(), "--mlx-path", tmp_path / "out")
    assert_refused(result, "exists already; delete it or name another folder")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_values_beyond_float16_are_refused(tmp_path):
    source = tmp_path / "big"
    original = load_adapter(adapter())
    weights = dict(original.weights)
    weights["model.layers.0.self_attn.beta_bias"] = mx.full((8,), 1e6)
    source.mkdir()
    (source / CONFIG_FILE).write_text(original.config.to_json())
    mx.save_safetensors(str(source / WEIGHTS_FILE), weights)
    for to in ("mlx", "torch"):
        with pytest.raises(ValueError, match="beta_bias holds NaN or infinite values"):
            convert(str(source), tmp_path / "out", to=to, dtype=mx.float16)
        assert not (tmp_path / "out").exists()


_FULL_DISK = """
import resource, signal, sys
import tools.openblas
from mlx_deltamem.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
main()
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    for command in (
        ["convert", "--torch-path", adapter(), "--mlx-path", "out"],
        ["grow", adapter(), "out", "--read-gate"],
    ):
        ended = subprocess.run(
            [sys.executable, "-c", _FULL_DISK, *command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"},
            check=False,
        )
        assert_refused(ended, "is the disk full?")
        assert list(tmp_path.iterdir()) == []
