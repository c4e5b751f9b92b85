"""`Inbox`: what clients ask of the engine, as items of its agenda; in other ranks, what rank 0 tells, as work."""

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar, TypeVarTuple, cast

from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.ranks.world import World
from mlx_deltamem.serving.agenda import Agenda, Item, Work
from mlx_deltamem.serving.exchange import RefusedError, ending
from mlx_deltamem.serving.operations import Operations, Settle
from mlx_deltamem.serving.replies import Replies
from mlx_deltamem.serving.reply_job import NobodysOutlet, ReplyJob
from mlx_deltamem.serving.request_json import as_json, from_json

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")
# The names of what is asked, beside those of operations on memories and those that the engine has.
_REPLY, _LEFT = "reply", "left"


class Inbox:
    """Takes what is asked of the engine. Any thread may call the public methods.

    Args:
        world: The ranks.
        replies: The requests for replies.
        operations: The operations on memories.
        own: By name, work of the engine itself.
        longest_queue: The largest number of requests that wait.

    Attributes:
        agenda: What was asked, in order.
        is_accepting: Whether something new may be asked; False while the server ends.
    """

    def __init__(
        self, world: World, replies: Replies, operations: Operations, own: dict[str, Work], longest_queue: int
    ):
        self.agenda = Agenda(world, self._work_of, lambda: replies.active)
        self.is_accepting = True
        self._world = world
        self._replies = replies
        self._operations = operations
        self._own = own
        self._longest_queue = longest_queue
        self._numbers = itertools.count()
        self._jobs: dict[int, ReplyJob] = {}

    def submit(self, job: ReplyJob) -> int:
        """Take a request for a reply.

        Returns:
            The number of the request, for `leave`.

        Raises:
            RefusedError: The server ends, or too many requests wait.
        """
        self._check_accepting()
        waiting = self._replies.waiting
        if waiting >= self._longest_queue:
            raise RefusedError(429, "queue_full", f"{waiting} requests wait; try again later")
        number = next(self._numbers)
        self.agenda.put(Item(self._arrival(number, job), _REPLY, lambda: [number, as_json(job.request)]))
        return number

    def leave(self, number: int, has_received: bool) -> None:
        """Forget a request, because its reply has ended or its client has gone.

        A reply that is being generated ends within one step.

        Args:
            number: The number of the request.
            has_received: Whether anything of the reply was sent to the client.
        """
        self.agenda.put(Item(lambda: self._left(number, has_received), _LEFT, lambda: [number, has_received]))

    def call(
        self,
        operation: Callable[[Operations, Settle[_Result], *_Arguments], None],
        settle: Settle[_Result],
        *arguments: *_Arguments,
    ) -> None:
        """Do an operation in the engine's thread, between two steps.

        Args:
            operation: A method of `Operations`.
            settle: Takes its result, in the engine's thread.
            arguments: Its further arguments, in a form that JSON has.

        Raises:
            RefusedError: The server ends.
        """
        self._check_accepting()
        self.tell(operation, settle, *arguments)

    def tell(
        self,
        operation: Callable[[Operations, Settle[_Result], *_Arguments], None],
        settle: Settle[_Result],
        *arguments: *_Arguments,
    ) -> None:
        """As `call`, also while the server ends."""

        def work() -> None:
            operation(self._operations, settle, *arguments)

        self.agenda.put(Item(work, operation.__name__, lambda: cast("tuple[Json, ...]", arguments)))

    def do(self, name: str) -> None:
        """Let the engine do its own work of a name."""
        self.agenda.put(Item(self._own[name], name))

    def _check_accepting(self) -> None:
        if not self.is_accepting:
            raise ending()

    def _arrival(self, number: int, job: ReplyJob) -> Work:
        """The work that lets a request for a reply arrive. Until then it waits."""
        self._replies.waiting += 1

        def arrive() -> None:
            self._jobs[number] = job
            self._replies.arrive(job)

        return arrive

    def _left(self, number: int, has_received: bool) -> None:
        job = self._jobs.pop(number, None)
        if job is not None:
            job.outlet.is_closed = True
            job.has_received = has_received

    def _work_of(self, name: str, arguments: Sequence[Json]) -> Work:
        """In other ranks than rank 0: what rank 0 does, without answers."""
        if name == _REPLY:
            number, request = arguments
            return self._arrival(cast(int, number), ReplyJob(from_json(request), NobodysOutlet()))
        if name == _LEFT:
            return lambda: self._left(cast(int, arguments[0]), bool(arguments[1]))
        if name in self._own:
            return self._own[name]
        return lambda: getattr(self._operations, name)(self._drop, *arguments)

    def _drop(self, work: Callable[[], object]) -> None:
        """Run a function whose result nobody in this rank waits for."""
        try:
            work()
        except Exception as error:
            self._world.check_common(error)
