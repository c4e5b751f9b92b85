"""Ranks on different hosts: a slow link changes nothing, and a link that is cut ends both."""

import time

import pytest

from mlx_deltamem import ChatSession, load
from tests.command_line import run_command
from tests.ranks.hosts import can_make_hosts, two_hosts
from tests.ranks.launched import Ranks, assert_one_line_names

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.slow,
    pytest.mark.skipif(not can_make_hosts(), reason="needs Linux, root and iproute2"),
]
# Seconds, one way: that of a bad wireless network.
_DELAY = 0.02


@pytest.fixture
def hosts():
    with two_hosts(_DELAY) as made:
        yield made


def test_ranks_with_a_slow_link_reply_as_one_process(hosts, options, tmp_path):
    networks, addresses, link = hosts
    asked = ["--prompt", "Hello", "--prompt", "And you?", "-m", 6, "--verbose", "False"]
    alone = run_command("generate", *options, *asked, "--session", tmp_path / "alone.safetensors")
    begun = time.monotonic()
    arguments = ["generate", *options, *asked, "--session", tmp_path / "ranks.safetensors"]
    ranks = Ranks(2, "mlx_deltamem", *arguments, networks=networks, addresses=addresses).wait()
    assert [(each.code, each.out, each.err) for each in ranks] == [(0, alone.stdout, ""), (0, "", "")]
    # The ranks did wait for the link: each token goes over it at least once.
    assert link.frames > 12 and time.monotonic() - begun > 12 * _DELAY
    loaded = load(options[1], adapter=options[3])
    chats = [ChatSession.load(*loaded, tmp_path / f"{name}.safetensors") for name in ("alone", "ranks")]
    assert chats[0].messages == chats[1].messages


def test_a_link_that_is_cut_ends_both_ranks(hosts, options, tmp_path):
    networks, addresses, link = hosts
    file = tmp_path / "chat.safetensors"
    run_command("generate", *options, "--prompt", "Hello", "-m", 4, "--session", file)
    before = file.read_bytes()
    arguments = ["generate", *options, "--prompt", "On", "-m", 100_000, "--session", file]
    ranks = Ranks(2, "mlx_deltamem", *arguments, networks=networks, addresses=addresses)
    ranks.read_until("=====")
    link.cut()
    begun = time.monotonic()
    first, second = ranks.wait()
    assert time.monotonic() - begun < 30
    assert_one_line_names(1, [first])
    assert_one_line_names(0, [second])
    assert file.read_bytes() == before
