"""The engine: one thread that generates the replies of all requests and does all work on memories."""

import contextvars
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar, TypeVarTuple, cast

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.spread import world_of
from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.serving.agenda import Agenda, Item, Work
from mlx_deltamem.serving.exchange import RefusedError, ending
from mlx_deltamem.serving.memories import Memories
from mlx_deltamem.serving.metrics import Metrics
from mlx_deltamem.serving.operations import Operations, Settle
from mlx_deltamem.serving.replies import Replies
from mlx_deltamem.serving.reply_job import NobodysOutlet, ReplyJob
from mlx_deltamem.serving.request_json import as_json, from_json
from mlx_deltamem.serving.saver import Saver
from mlx_deltamem.serving.work import attempt
from mlx_deltamem.sessions.batch import ReplyBatch

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")
# What ranks tell each other, beside operations on memories.
_REPLY, _LEFT, _CUT, _END = "reply", "left", "cut", "end"


class Engine:
    """Generates replies and changes memories, all in one thread.

    Work on one memory is done in the order in which it came. Work on different memories runs side by side, in one
    batch. A request that only reads a memory runs on a copy of it, at once.

    If several ranks hold the model, each has an engine with the same memories. What is asked of rank 0 is done by all,
    and rank 0 alone has the files and answers.

    Args:
        model: An attached model.
        tokenizer: Its tokenizer.
        memories: The memories.
        most: The largest number of replies at a time.
        longest_queue: The largest number of requests that wait.
        replay_limit: The largest number of tokens that run again after an edit below other chats.
        save_after: As in `Saver`: the seconds that a turn may wait for its file.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        memories: Memories,
        most: int = 32,
        longest_queue: int = 256,
        replay_limit: int = 4096,
        save_after: float = 0.0,
    ):
        self.tokenizer = tokenizer
        self.memories = memories
        self.metrics = Metrics()
        self.world = world_of(model)
        self.is_accepting = True
        self.failure: BaseException | None = None
        self._agenda = Agenda(self.world, self._work_of, lambda: self.active)
        self._saver = Saver(save_after, lambda: self._agenda.now)
        self._replies = Replies(
            ReplyBatch(model, tokenizer, most), memories, self._saver, self.metrics, replay_limit, self._progressed
        )
        self.operations = Operations(memories, tokenizer.think_end, replay_limit, self.others_go_on)
        self._longest_queue = longest_queue
        self._numbers = itertools.count()
        self._jobs: dict[int, ReplyJob] = {}
        self._progress_at = time.monotonic()
        self._is_working = False
        self._is_cut = False
        self._is_within = False
        self._is_over = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wait(self) -> None:
        """Wait until the thread has ended.

        Raises:
            RuntimeError: Something failed in this rank alone, or this rank is not where rank 0 is.
        """
        self._ended.wait()
        if self.failure is not None:
            raise RuntimeError(str(self.failure)) from self.failure

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way or waits."""
        return not (self._replies.active or self._replies.waiting or self._is_working)

    def cut(self) -> None:
        """End all replies at their last token, and refuse what waits. Any thread may call it."""
        self.is_accepting = False
        self._agenda.put(Item(self._end_all, _CUT))

    def stop(self, grace: float) -> None:
        """Take no more requests, wait for those under way, and end the thread.

        Args:
            grace: The seconds to wait. Replies that have not ended by then end at their last token.
        """
        self.is_accepting = False
        end = time.monotonic() + grace
        while not self.is_idle and time.monotonic() < end and self._thread.is_alive():
            time.sleep(0.02)
        self.cut()
        self._agenda.put(Item(self._end, _END))
        if self._thread.is_alive():
            self._ended.wait()
        self.memories.close()

    @property
    def active(self) -> int:
        """The number of replies that are being generated."""
        return self._replies.active

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return self._replies.waiting

    @property
    def unsaved(self) -> int:
        """The number of memories with turns that are not on disk."""
        return self._saver.unsaved

    @property
    def stalled_seconds(self) -> float:
        """The seconds since the thread last made progress, while it has work; else 0."""
        return time.monotonic() - self._progress_at if self._is_working else 0.0

    def submit(self, job: ReplyJob) -> int:
        """Take a request for a reply. Any thread may call it.

        Returns:
            The number of the request, for `leave`.

        Raises:
            RefusedError: The server ends, or too many requests wait.
        """
        self._check_accepting()
        if self.waiting >= self._longest_queue:
            raise RefusedError(429, "queue_full", f"{self.waiting} requests wait; try again later")
        number = next(self._numbers)
        work = self._arrival(number, job)
        self._agenda.put(Item(work, _REPLY, lambda: [number, as_json(job.request)]))
        return number

    def leave(self, number: int) -> None:
        """Forget a request, because its reply has ended or its client has gone. Any thread may call it.

        A reply that is being generated ends within one step.
        """
        self._agenda.put(Item(lambda: self._left(number), _LEFT, lambda: [number]))

    def call(
        self,
        operation: Callable[[Operations, Settle[_Result], *_Arguments], None],
        settle: Settle[_Result],
        *arguments: *_Arguments,
    ) -> None:
        """Do an operation in the engine's thread, between two steps. Any thread may call it.

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
        work = lambda: operation(self.operations, settle, *arguments)  # noqa: E731
        self._agenda.put(Item(work, operation.__name__, lambda: cast("tuple[Json, ...]", arguments)))

    def _check_accepting(self) -> None:
        if not self.is_accepting:
            raise ending()

    def others_go_on(self, done: int, total: int) -> None:
        """Between two parts of long work on a memory, let all other requests begin and go on.

        Raises:
            RefusedError: The server ends, and the work has to end too.
        """
        self._progressed()
        if done < total:
            round_ = self._replies.step if self._is_within else self._round_within
            # How the work uses the memory is not how the others do.
            contextvars.Context().run(round_)
        if self._is_cut:
            raise ending()

    def _round_within(self) -> None:
        """A round while other work is under way. Work within it only lets replies go on, so that nothing piles up."""
        self._is_within = True
        try:
            while (work := self._agenda.next(wait=False)) is not None:
                attempt(work, self.world)
            self._round()
        finally:
            self._is_within = False

    def _run(self) -> None:
        try:
            while not self._is_over:
                self._turn()
        except BaseException as error:
            self.failure = error
        self.is_accepting = False
        self._ended.set()
        # MLX aborts the process if a thread that has computed ends before it.
        threading.Event().wait()

    def _turn(self) -> None:
        """Do what has come, or a round if nothing has."""
        self._progressed()
        self._is_working = self._replies.can_go_on
        work = self._agenda.next(wait=not self._is_working, until=self._saver.due_at)
        # In this order: the time in which nothing came is no stall.
        self._progressed()
        self._is_working = self._is_working or work is not None
        attempt(self._round if work is None else work, self.world)

    def _round(self) -> None:
        """Begin what can begin, generate a token of each reply, and save what has waited for it."""
        self._replies.begin_ready()
        self._replies.step()
        self._replies.end_closed()
        self._saver.save_due()

    def _progressed(self) -> None:
        self._progress_at = time.monotonic()

    def _arrival(self, number: int, job: ReplyJob) -> Work:
        """The work that lets a request for a reply arrive. Until then it waits."""
        self._replies.waiting += 1

        def arrive() -> None:
            self._jobs[number] = job
            self._replies.arrive(job)

        return arrive

    def _left(self, number: int) -> None:
        job = self._jobs.pop(number, None)
        if job is not None:
            job.outlet.is_closed = True

    def _end_all(self) -> None:
        self._is_cut = True
        self._replies.end_all()
        self._saver.save_all()

    def _end(self) -> None:
        self._is_over = True

    def _work_of(self, name: str, arguments: Sequence[Json]) -> Work:
        """In other ranks than rank 0: what rank 0 does, without answers."""
        if name == _REPLY:
            number, request = arguments
            return self._arrival(cast(int, number), ReplyJob(from_json(request), NobodysOutlet()))
        if name == _LEFT:
            return lambda: self._left(cast(int, arguments[0]))
        if name in (_CUT, _END):
            return self._end_all if name == _CUT else self._end
        return lambda: getattr(self.operations, name)(self._drop, *arguments)

    def _drop(self, work: Callable[[], object]) -> None:
        """Run a function whose result nobody in this rank waits for."""
        try:
            work()
        except Exception as error:
            self.world.check_common(error)
