"""The command that makes adapters larger."""

from dataclasses import replace

from mlx_deltamem import grow, load_adapter, save_adapter
from mlx_deltamem.adapters.card.folder import load_with_card
from mlx_deltamem.adapters.grow import uncoupled, widened, with_key_shift, with_layers, with_read_gates
from mlx_deltamem.core.adapter import CARD_FILE
from tests.adapters.test_grow import random_adapter
from tests.command_line import error_line
from tests.tool_runs import runner
from tests.training.runs import same


def test_a_folder_is_made_that_tells_what_was_done(tmp_path, monkeypatch, capsys):
    source = replace(random_adapter(), metadata={"trained": "for tiny on toy", "changed": "weights stored as bfloat16"})
    save_adapter(source, tmp_path / "adapter")
    ended = runner(grow, monkeypatch, capsys)(
        tmp_path / "adapter", tmp_path / "grown", "--rank", 6, "--target-layers", 1, "--no-couple-lambda", "--seed", 3
    )
    made = load_adapter(tmp_path / "grown")
    size = f"{made.parameters:,} parameters in layer 1, 144 bytes of memory for each sequence"
    assert (ended.code, ended.errors, ended.output) == (0, "", f"Wrote {tmp_path / 'grown'}: {size}\n")
    assert made.metadata["trained"] == "for tiny on toy"
    done = "kept in layer 1, then widened to rank 6, then given a λ of its own"
    assert made.metadata["changed"] == f"weights stored as bfloat16, then {done}"
    assert same(made.weights, uncoupled(widened(with_layers(source, [1]), 6, seed=3)).weights)


def test_what_cannot_be_done_is_refused(tmp_path, monkeypatch, capsys):
    save_adapter(random_adapter(), tmp_path / "adapter")
    save_adapter(random_adapter(couple_lambda=False), tmp_path / "free")
    save_adapter(random_adapter(state_update_mode="no_lambda"), tmp_path / "keeping")
    run = runner(grow, monkeypatch, capsys)
    for name, options, error in [
        ("adapter", (), "nothing would change; give --rank, --target-layers, --no-couple-lambda, --read-gate or"),
        ("adapter", ("--rank", 4), "adapter has 4; expected a larger one"),
        ("adapter", ("--target-layers", 1, "--seed", 1), "--seed is the seed of the rows that are new with --rank"),
        ("adapter", ("--rank", 6, "--seed", 2**64), f"--seed is {2**64}; expected a whole number from 0 to 2**64 - 1"),
        ("adapter", ("--rank", 2000), "--rank is 2000; expected a whole number from 1 to 1,024"),
        ("adapter", ("--target-layers", 1, 2, 3), "has no memory in layers 2-3; name some of layers 0-1"),
        ("free", ("--no-couple-lambda",), "already has separate weights for λ"),
        ("keeping", ("--no-couple-lambda",), "keeps all of its state and has no λ"),
        ("", ("--rank", 6), "not a δ-mem adapter"),
    ]:
        ended = run(tmp_path / name, tmp_path / "grown", *options)
        assert ended.code == 2 and error_line(ended.errors).startswith("error: ") and error in ended.errors
        assert not (tmp_path / "grown").exists()
    ended = run(tmp_path / "adapter", tmp_path, "--rank", 6)
    assert (ended.code, ended.errors) == (2, f"error: {tmp_path} exists already; delete it or name another folder\n")


def test_read_gates_and_a_key_shift_are_added(tmp_path, monkeypatch, capsys):
    save_adapter(random_adapter(), tmp_path / "adapter")
    run = runner(grow, monkeypatch, capsys)
    ended = run(tmp_path / "adapter", tmp_path / "grown", "--read-gate", "--key-shift", 0.5)
    made = load_adapter(tmp_path / "grown")
    assert (ended.code, ended.errors) == (0, "")
    assert made.metadata["changed"] == "given read gates, then given a key shift"
    assert same(made.weights, with_key_shift(with_read_gates(load_adapter(tmp_path / "adapter")), 0.5).weights)
    wider = run(tmp_path / "grown", tmp_path / "wider", "--rank", 6)
    assert (wider.code, wider.errors) == (0, "")
    again = run(tmp_path / "grown", tmp_path / "again", "--key-shift", 0)
    assert again.code == 2 and "already has a key shift; leave out --key-shift" in again.errors


def test_the_card_keeps_the_licence(tmp_path, monkeypatch, capsys):
    save_adapter(random_adapter(), tmp_path / "adapter")
    (tmp_path / "adapter" / CARD_FILE).write_text("---\nlicense: mit\n---\n")
    assert runner(grow, monkeypatch, capsys)(tmp_path / "adapter", tmp_path / "grown", "--rank", 6).code == 0
    assert load_with_card(tmp_path / "grown").metadata["license"] == "mit"
    assert "Changed: widened to rank 6." in (tmp_path / "grown" / CARD_FILE).read_text()
