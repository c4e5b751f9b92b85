"""Rank 0 tells the other ranks the work of its engine."""

import io
import json
import socket
import threading

import pytest

from mlx_deltamem.ranks.connection import Connection
from mlx_deltamem.ranks.world import RankError, World
from mlx_deltamem.serving.agenda import Agenda, Item
from mlx_deltamem.serving.exchange import Mode, ReplyRequest, Sampling
from mlx_deltamem.serving.request_json import as_json, from_json


class Told:
    """The agendas of two ranks in this process, and what each of them has done."""

    def __init__(self, counts: tuple[int, int] = (0, 0)):
        self.done: tuple[list[object], list[object]] = ([], [])
        sockets = socket.socketpair()
        worlds = [World(rank, 2, None, {}, io.StringIO()) for rank in range(2)]
        for rank, world in enumerate(worlds):
            world.connections = {1 - rank: Connection(sockets[rank], "mac", lambda _: None)}
        self.agendas = [
            Agenda(world, self._work_of, lambda count=count: count) for world, count in zip(worlds, counts, strict=True)
        ]

    def _work_of(self, name: str, arguments: object):
        return lambda: self.done[1].append([name, *arguments])

    def put(self, name: str, *arguments: object) -> None:
        self.agendas[0].put(Item(lambda: self.done[0].append([name, *arguments]), name, lambda: arguments))

    def next(self, rank: int) -> bool:
        """Whether there was work, which is done."""
        work = self.agendas[rank].next(wait=False)
        if work is not None:
            work()
        return work is not None


def test_all_ranks_do_the_same_in_the_same_order_at_the_same_time():
    told = Told()
    for number in range(3):
        told.put("reply", number, {"text": "ä"})
    order = []
    for _ in range(5):
        order.append([told.next(0), told.next(1)])
        assert told.agendas[0].now == told.agendas[1].now
    assert order == [[True, True]] * 3 + [[False, False]] * 2
    assert told.done[0] == told.done[1] == [["reply", number, {"text": "ä"}] for number in range(3)]


def test_a_rank_that_is_elsewhere_notices():
    told = Told(counts=(2, 1))
    told.next(0)
    with pytest.raises(RankError, match="rank 0 generates 2 replies, and this rank 1"):
        told.next(1)


def test_one_process_waits_for_work_up_to_a_time():
    alone = Agenda(World(0, 1), lambda name, arguments: lambda: None)
    assert alone.next(wait=True, until=alone.now + 0.01) is None
    done = []
    threading.Timer(0.05, lambda: alone.put(Item(lambda: done.append(1), "x"))).start()
    alone.next(wait=True)()
    assert done == [1]


@pytest.mark.parametrize(
    "request_",
    [
        ReplyRequest(),
        ReplyRequest(
            messages=({"role": "user", "content": "δ\udcff"}, {"role": "tool", "content": "", "tool_call_id": "1"}),
            memory="anna",
            mode=Mode.READ,
            chat="c",
            continues="t",
            tools=({"type": "function", "function": {"name": "f"}},),
            template_options={"enable_thinking": True},
            goes_on=False,
            text="a",
            max_tokens=-1,
            stop=("x", "y"),
            sampling=Sampling(temperature=0.1 + 0.2, logit_bias={5: -1.5}, seed=2**62),
            top_logprobs=3,
        ),
    ],
)
def test_a_request_is_the_same_in_other_ranks(request_):
    assert from_json(json.loads(json.dumps(as_json(request_)))) == request_
