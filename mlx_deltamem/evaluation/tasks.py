"""The tasks that there are, by name."""

from mlx_deltamem.evaluation.recall import Recall
from mlx_deltamem.evaluation.task import Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Recall,)}
