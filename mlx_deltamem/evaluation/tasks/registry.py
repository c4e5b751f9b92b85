"""All tasks, by name."""

from mlx_deltamem.evaluation.task import Task
from mlx_deltamem.evaluation.tasks.hotpotqa import HotpotQA
from mlx_deltamem.evaluation.tasks.locomo import Locomo
from mlx_deltamem.evaluation.tasks.memory_agent_bench import MemoryAgentBench
from mlx_deltamem.evaluation.tasks.recall import Recall

TASKS: dict[str, type[Task]] = {task.name: task for task in (Locomo, MemoryAgentBench, HotpotQA, Recall)}
# The task that asks no questions with an answer: it compares the model with the frozen one (`health`).
HEALTH = "health"
