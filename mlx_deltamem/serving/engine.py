"""The engine: one thread that generates the replies of all requests and does all work on memories."""

import contextvars
import threading
import time

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.core.spread import world_of
from mlx_deltamem.serving.exchange import ending
from mlx_deltamem.serving.inbox import Inbox
from mlx_deltamem.serving.memories import Memories
from mlx_deltamem.serving.metrics import Metrics
from mlx_deltamem.serving.operations import Operations
from mlx_deltamem.serving.replies import Replies
from mlx_deltamem.serving.saver import Saver
from mlx_deltamem.serving.work import attempt
from mlx_deltamem.sessions.batch.reply_batch import ReplyBatch

# What the engine does when the server ends.
_CUT, _END = "cut", "end"


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

    Attributes:
        inbox: Takes what is asked of the engine.
        failure: The error that has ended the thread, or None.
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
        self.failure: BaseException | None = None
        self._saver = Saver(save_after, lambda: self.inbox.agenda.now)
        self._replies = Replies(
            ReplyBatch(model, tokenizer, most), memories, self._saver, self.metrics, replay_limit, self._progressed
        )
        self.operations = Operations(memories, tokenizer.think_end, replay_limit, self.others_go_on)
        own = {_CUT: self._end_all, _END: self._end}
        self.inbox = Inbox(self.world, self._replies, self.operations, own, longest_queue)
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
        self.inbox.is_accepting = False
        self.inbox.do(_CUT)

    def stop(self, grace: float) -> None:
        """Take no more requests, wait for those under way, and end the thread.

        Args:
            grace: The seconds to wait. Replies that have not ended by then end at their last token.
        """
        self.inbox.is_accepting = False
        end = time.monotonic() + grace
        while not self.is_idle and time.monotonic() < end and self._thread.is_alive():
            time.sleep(0.02)
        self.cut()
        self.inbox.do(_END)
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
            while (work := self.inbox.agenda.next(wait=False)) is not None:
                attempt(work, self.world)
            self._round()
        finally:
            self._is_within = False

    def _run(self) -> None:
        try:
            while not self._is_over:
                self._turn()
            # The end may have come within work on a memory, which was taken back then.
            self._saver.save_all()
        except BaseException as error:
            self.failure = error
        self.inbox.is_accepting = False
        self._ended.set()
        # MLX aborts the process if a thread that has computed ends before it.
        threading.Event().wait()

    def _turn(self) -> None:
        """Do what has come, or a round if nothing has."""
        self._progressed()
        self._is_working = self._replies.can_go_on
        work = self.inbox.agenda.next(wait=not self._is_working, until=self._saver.due_at)
        # In this order: the time in which nothing came is no stall.
        self._progressed()
        self._is_working = self._is_working or work is not None
        attempt(self._round if work is None else work, self.world)

    def _round(self) -> None:
        """Begin what can begin, generate a token of each reply, and save what has waited for it."""
        if self._is_cut:
            # When a text that was cut ends, the next request for its memory would begin.
            self._end_all()
            return
        self._replies.begin_ready()
        self._replies.step()
        self._replies.end_closed()
        self._saver.save_due()

    def _progressed(self) -> None:
        self._progress_at = time.monotonic()

    def _end_all(self) -> None:
        self._is_cut = True
        self._replies.end_all()
        self._saver.save_all()

    def _end(self) -> None:
        self._is_over = True
