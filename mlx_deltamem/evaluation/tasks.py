"""The tasks that there are, by name."""

from mlx_deltamem.evaluation.hotpotqa import HotpotQA
from mlx_deltamem.evaluation.locomo import Locomo
from mlx_deltamem.evaluation.memory_agent_bench import MemoryAgentBench
from mlx_deltamem.evaluation.recall import Recall
from mlx_deltamem.evaluation.task import Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Locomo, MemoryAgentBench, HotpotQA, Recall)}
