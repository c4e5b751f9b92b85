"""The tasks that there are, by name."""

from mlx_deltamem.evaluation.task import Task

TASKS: dict[str, type[Task]] = {}
