"""The engine: one thread that generates the replies of all requests and does all work on memories."""

import contextvars
import queue
import threading
import time
from collections.abc import Callable

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.serving.exchange import RefusedError, ending
from mlx_deltamem.serving.memories import Memories
from mlx_deltamem.serving.metrics import Metrics
from mlx_deltamem.serving.replies import Replies
from mlx_deltamem.serving.reply_job import ReplyJob
from mlx_deltamem.serving.saver import Saver
from mlx_deltamem.serving.work import attempt
from mlx_deltamem.sessions.batch import ReplyBatch


class Engine:
    """Generates replies and changes memories, all in one thread.

    Work on one memory is done in the order in which it came. Work on different memories runs side by side, in one
    batch. A request that only reads a memory runs on a copy of it, at once.

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
        self.is_accepting = True
        self._saver = Saver(save_after)
        self._replies = Replies(
            ReplyBatch(model, tokenizer, most), memories, self._saver, self.metrics, replay_limit, self._progressed
        )
        self._longest_queue = longest_queue
        self.replay_limit = replay_limit
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._progress_at = time.monotonic()
        self._is_working = False
        self._is_cut = False
        self._is_within = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way or waits."""
        return not (self._replies.active or self._replies.waiting or self._is_working)

    def cut(self) -> None:
        """End all replies at their last token, and refuse what waits. Any thread may call it."""
        self.is_accepting, self._is_cut = False, True
        self._inbox.put(self._end_all)

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
        self._inbox.put(None)
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

    def submit(self, job: ReplyJob) -> None:
        """Take a request for a reply. Any thread may call it.

        Raises:
            RefusedError: The server ends, or too many requests wait.
        """
        self._check_accepting()
        if self.waiting >= self._longest_queue:
            raise RefusedError(429, "queue_full", f"{self.waiting} requests wait; try again later")
        self._replies.waiting += 1
        self._inbox.put(lambda: self._replies.arrive(job))

    def call(self, work: Callable[[], None]) -> None:
        """Run a function in the engine's thread, between two steps. Any thread may call it.

        Raises:
            RefusedError: The server ends.
        """
        self._check_accepting()
        self._inbox.put(work)

    def _check_accepting(self) -> None:
        if not self.is_accepting:
            raise ending()

    def others_go_on(self, done: int, total: int) -> None:
        """Between two parts of long work on a memory, let all other requests begin and go on.

        Raises:
            RefusedError: The server ends, and the work has to end too.
        """
        self._progressed()
        if self._is_cut:
            raise ending()
        if done < total:
            round_ = self._replies.step if self._is_within else self._round_within
            # How the work uses the memory is not how the others do.
            contextvars.Context().run(round_)

    def _round_within(self) -> None:
        """A round while other work is under way. Work within it only lets replies go on, so that nothing piles up."""
        self._is_within = True
        try:
            while not self._inbox.empty():
                work = self._inbox.get()
                if work is None:
                    # The thread may not end here.
                    self._inbox.put(None)
                    break
                attempt(work)
            self._round()
        finally:
            self._is_within = False

    def _run(self) -> None:
        while True:
            self._progressed()
            self._is_working = self._replies.can_go_on
            try:
                work = self._inbox.get(block=not self._is_working, timeout=self._saver.seconds_left())
            except queue.Empty:
                pass
            else:
                if work is None:
                    self._ended.set()
                    # MLX aborts the process if a thread that has computed ends before it.
                    threading.Event().wait()
                    return
                # In this order: the time in which nothing came is no stall.
                self._progressed()
                self._is_working = True
                attempt(work)
                continue
            attempt(self._round)

    def _round(self) -> None:
        """Begin what can begin, generate a token of each reply, and save what has waited for it."""
        self._replies.begin_ready()
        self._replies.step()
        self._replies.end_closed()
        self._saver.save_due()

    def _progressed(self) -> None:
        self._progress_at = time.monotonic()

    def _end_all(self) -> None:
        self._replies.end_all()
        self._saver.save_all()
