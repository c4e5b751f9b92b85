"""Reports of a run to wandb and SwanLab, through mlx-lm's callbacks."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mlx_lm.tuner.callbacks import TrainingCallback, get_reporting_callbacks

from mlx_deltamem.adapters.names import PLACES
from mlx_deltamem.adapters.publish import public_name
from mlx_deltamem.training.settings import Reporting


def check_services(reporting: Reporting) -> None:
    """Check that the libraries of the services are installed.

    Raises:
        ValueError: One is not; or there is a project without a service.
    """
    if reporting.project_name is not None and reporting.report_to is None:
        raise ValueError("--project-name goes with --report-to wandb or swanlab; give both or neither")
    for name in _services(reporting):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--report-to {name} needs {name}, which is not installed: pip install {name}")


def reporter(reporting: Reporting, options: Mapping[str, object], folder: Path) -> TrainingCallback | None:
    """Begin the run at the services, and return what sends reports to them; None if there are none.

    Args:
        reporting: The settings of the reports.
        options: The options of the run, which the services show. Names of folders on this machine are shortened.
        folder: The run's folder. Its name is that of the run at the services.
    """
    shown = {
        name: public_name(value) if name in PLACES and isinstance(value, str) and value else value
        for name, value in options.items()
    }
    services = ",".join(_services(reporting))
    # mlx-lm says that this is a text, and passes its options as a dict.
    config = cast(Any, shown)
    made: TrainingCallback | None = get_reporting_callbacks(
        services, reporting.project_name, str(folder.absolute()), config
    )
    return made


def _services(reporting: Reporting) -> list[str]:
    return [] if reporting.report_to is None else reporting.report_to.split(",")
