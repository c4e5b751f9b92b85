"""The metadata of a trained adapter, and the fingerprint of its data."""

from dataclasses import replace

import pytest
import yaml

from mlx_deltamem import load_adapter, save_adapter
from mlx_deltamem.adapters.card.card import make_card
from mlx_deltamem.core.adapter import CURVES_FILE, METRICS_FILE, SETTINGS_FILE
from mlx_deltamem.sessions.text.segments import Segments
from mlx_deltamem.training.checkpoint import Progress
from mlx_deltamem.training.episode import Episode, Question
from mlx_deltamem.training.keeper import episodes_fingerprint, training_metadata
from mlx_deltamem.training.monitor import Metrics
from mlx_deltamem.training.settings import Schedule, Settings
from tests.conftest import adapter
from tests.training.cases import as_read, towards
from tests.training.runs import toy_episodes

SETTINGS = Settings("/home/anna/models/tiny", "/home/anna/secret/chats", schedule=Schedule(iters=200, batch_size=3))
TRAINED = "for tiny on chats (1,200 episodes): 200 steps of 3, seed 0"


def test_the_metadata_of_a_trained_adapter():
    assert training_metadata(SETTINGS, {}, Progress(200, 3.0, 1200)) == {"trained": TRAINED}
    earlier = {"trained": "before", "source_adapter": "anna/memory@1", "changed": "weights stored as bfloat16"}
    assert training_metadata(SETTINGS, earlier, Progress(100, 3.0, 1200)) == {
        "trained": f"before; then {TRAINED.replace('200 steps', '100 of 200 steps')}",
        "changed": "weights stored as bfloat16, then trained",
    }
    own = {"trained": "before", "changed": "weights stored as bfloat16"}
    assert (
        training_metadata(SETTINGS, own, Progress(200, 3.0, 1200))["changed"] == earlier["changed"] + ", then trained"
    )
    new = training_metadata(SETTINGS, {"source_adapter": "anna/memory@1"}, Progress(200, 3.0, 1200))
    assert new["changed"] == "trained further"
    for changed in ("trained further", "weights stored as bfloat16, then trained"):
        again = {"trained": "before", "source_adapter": "anna/memory@1", "changed": changed}
        assert "changed" not in training_metadata(SETTINGS, again, Progress(200, 3.0, 1200))


@pytest.fixture
def folder(tmp_path):
    """The folder of a trained adapter, with the other files of a run."""
    trained = load_adapter(adapter())
    save_adapter(replace(trained, metadata=training_metadata(SETTINGS, {}, Progress(200, 3.0, 1200))), tmp_path / "run")
    (tmp_path / "run" / SETTINGS_FILE).write_text(yaml.safe_dump(SETTINGS.flat()))
    Metrics(tmp_path / "run").add({"iteration": 1, "train_loss": 1.0, "seconds": 3723.4})
    Metrics(tmp_path / "run").add({"iteration": 1, "val_loss": 1.0})
    (tmp_path / "run" / CURVES_FILE).write_bytes(b"a picture")
    (tmp_path / "run" / "checkpoints").mkdir()
    return tmp_path / "run"


def test_the_card_describes_the_training(folder):
    text = make_card(folder, load_adapter(folder)).text
    assert f"## Training\n\nTrained by mlx_deltamem {TRAINED}.\nIt took 1:02:03.\n\n![" in text
    assert f"]({CURVES_FILE})" in text


@pytest.mark.parametrize("content", [b"", b"{}", b"5", b"{", b"\xff", b'{"seconds": "x"}', b'{"seconds": null}'])
def test_metrics_without_a_valid_time(folder, content):
    (folder / METRICS_FILE).write_bytes(content)
    (folder / CURVES_FILE).unlink()
    assert f"Trained by mlx_deltamem {TRAINED}.\n<!--" in make_card(folder, load_adapter(folder)).text


def test_other_data_has_another_fingerprint():
    episodes = toy_episodes(4)
    (question,), history = episodes[1].questions, episodes[1].history
    others = [
        episodes[:-1],
        episodes[::-1],
        toy_episodes(4, seed=1),
        [episodes[0], replace(episodes[1], questions=(replace(question, answer=4),)), *episodes[2:]],
        [episodes[0], replace(episodes[1], questions=(replace(question, value=(0, 0)),)), *episodes[2:]],
        [episodes[0], replace(episodes[1], history=Segments(history.ids, [1] * 8, [0] * 8)), *episodes[2:]],
        [episodes[0], replace(episodes[1], questions=(question, question)), *episodes[2:]],
        [episodes[0], replace(episodes[1], turns=(4, 4)), *episodes[2:]],
        [episodes[0], towards(episodes[1], "frozen"), *episodes[2:]],
        [episodes[0], as_read(episodes[1]), *episodes[2:]],
        [episodes[0], as_read(episodes[1], [True] * 7 + [False]), *episodes[2:]],
        [episodes[0], replace(episodes[1], written=[True] * 7 + [False]), *episodes[2:]],
    ]
    assert len({episodes_fingerprint(each) for each in (episodes, *others)}) == 13
    assert episodes_fingerprint(toy_episodes(4)) == episodes_fingerprint(episodes)
    # The same tokens in a row, split at other places.
    cut = (
        Episode(Segments([1, 2], [1, 1], [0, 0]), (Question([3, 4], 1, (0, 0)),)),
        Episode(Segments([1], [2], [0]), (Question([1, 1, 3, 4], 1, (0, 0)),)),
    )
    assert len({episodes_fingerprint([each]) for each in cut}) == 2
