import hashlib
import json
from dataclasses import replace

import mlx.core as mx
import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from mlx_deltamem import load_adapter, save_adapter
from mlx_deltamem.adapter import CARD_FILE, RESULTS_FILE, WEIGHTS_FILE
from mlx_deltamem.card import card_metadata, make_card, write_card
from mlx_deltamem.config import CONFIG_FILE
from tests.conftest import adapter


@pytest.fixture
def folder(tmp_path):
    """An adapter's folder with the card it got when it was saved."""
    save_adapter(load_adapter(adapter()), tmp_path / "memory")
    return tmp_path / "memory"


def card_of(folder, **given):
    return make_card(folder, load_adapter(folder), **given)


def edit(folder, *changes):
    path = folder / CARD_FILE
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def test_the_metadata_are_what_the_hub_understands(folder):
    data = ModelCard(card_of(folder, base_model="Qwen/Qwen3-0.6B", licence="mit").text).data.to_dict()
    assert data == {
        "base_model": "Qwen/Qwen3-0.6B",
        "base_model_relation": "adapter",
        "library_name": "mlx",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["mlx", "delta-mem", "memory", "arxiv:2605.12357"],
    }


def test_it_says_what_is_missing(folder):
    assert card_of(folder).missing == ["base_model", "license"]
    assert card_of(folder, base_model="a/b").missing == ["license"]
    assert card_of(folder, base_model="a/b", licence="mit").missing == []


def test_it_tells_the_configuration_the_sizes_and_the_checksums(folder):
    text = card_of(folder).text
    for line in ("| rank | 8 |", "| corrected | q, o |", "| parameters | 10,776 |", "| memory | 768 bytes"):
        assert line in text
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        content = (folder / name).read_bytes()
        assert f"| {name} | {len(content):,} | `{hashlib.sha256(content).hexdigest()}` |" in text
    assert "from `delta_mem_adapter.pt` (SHA-256 `" in text


def test_a_second_run_changes_nothing(folder):
    write_card(folder, card_of(folder, repo="anna/memory", base_model="a/b", licence="mit"))
    first = (folder / CARD_FILE).read_text()
    assert "--model a/b --adapter anna/memory" in first
    again = card_of(folder)
    assert (again.text, again.kept, again.missing) == (first, [], [])


def test_what_was_edited_by_hand_survives(folder):
    edit(
        folder,
        ("library_name: mlx", "library_name: mlx\nlicense: apache-2.0  # ours\nlanguage: nb"),
        ("## Adapter\n", "## The adapter, described by hand\n"),
        ("<!-- mlx_deltamem:files", "## Training\n\nOn bees.\n\n<!-- mlx_deltamem:files"),
    )
    card = card_of(folder, repo="anna/memory", base_model="a/b", licence=None)
    assert card.kept == ["adapter"]
    assert card.missing == []
    for text in ("license: apache-2.0", "language: nb", "## The adapter, described by hand", "## Training\n\nOn bees."):
        assert text in card.text
    assert "--adapter anna/memory" in card.text


def test_a_section_that_was_deleted_stays_away(folder):
    text = (folder / CARD_FILE).read_text()
    start, end = text.index("<!-- mlx_deltamem:files"), text.index("<!-- /mlx_deltamem:files -->")
    (folder / CARD_FILE).write_text(text[:start] + text[end + len("<!-- /mlx_deltamem:files -->") :])
    assert "## Files" not in card_of(folder).text


def test_metadata_that_need_no_change_keep_their_form(folder):
    write_card(folder, card_of(folder, base_model="a/b", licence="mit"))
    edit(folder, ("license: mit", "license:   'mit'   # for now"))
    assert "license:   'mit'   # for now" in card_of(folder).text


def test_lines_may_end_otherwise(folder):
    (folder / CARD_FILE).write_bytes((folder / CARD_FILE).read_bytes().replace(b"\n", b"\r\n"))
    assert card_of(folder).kept == []


def test_new_weights_bring_new_facts_and_leave_the_rest(folder):
    edit(folder, ("<!-- mlx_deltamem:files", "My words.\n\n<!-- mlx_deltamem:files"))
    before = load_adapter(folder)
    save_adapter(replace(before, weights={name: x.astype(mx.bfloat16) for name, x in before.weights.items()}), folder)
    text = (folder / CARD_FILE).read_text()
    assert "| weights | bfloat16 |" in text
    assert "My words." in text
    assert hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest() in text


def test_a_card_all_by_hand_is_left_alone_until_it_is_published(folder):
    (folder / CARD_FILE).write_text("# Mine\n")
    save_adapter(load_adapter(folder), folder)
    assert (folder / CARD_FILE).read_text() == "# Mine\n"
    card = card_of(folder, base_model="a/b", licence="mit")
    assert card.text.endswith("---\n# Mine\n")
    assert ModelCard(card.text).data.license == "mit"


def test_results_beside_the_weights_are_in_it(folder):
    assert "## Results" not in card_of(folder).text
    results = [
        {
            "task": "recall",
            "condition": "state",
            "metric": "exact match",
            "value": 0.81234567,
            "interval": [0.7777777, 0.84],
            "questions": 500,
        },
        {"task": "a|b\nc", "metric": "F1", "value": 3},
    ]
    (folder / RESULTS_FILE).write_text(json.dumps({"results": results}))
    text = card_of(folder).text
    assert "| recall | state | exact match | 0.8123 | 0.7778 to 0.84 | 500 |" in text
    assert "| a\\|b c |  | F1 | 3 |  |  |" in text


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"results": 3}', '{"results": [3]}'])
def test_damaged_results_are_named(content, folder):
    (folder / RESULTS_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"results\.json is damaged \(.*; expected an object with a list"):
        card_of(folder)


@pytest.mark.parametrize("block", ["a: [", "- a", "model-index: [{}]", "tags: 3", "base_model: {a: 3}", "license: 3"])
def test_damaged_metadata_are_named(block, folder):
    (folder / CARD_FILE).write_text(f"---\n{block}\n---\ntext")
    with pytest.raises(ValueError, match=r"README\.md is damaged \(") as error:
        card_of(folder)
    assert "\n" not in str(error.value)
    assert load_adapter(folder).parameters == 10776
    save_adapter(load_adapter(folder), folder)
    assert (folder / CARD_FILE).read_text() == f"---\n{block}\n---\ntext"


def test_a_card_that_is_no_text_is_named(folder):
    (folder / CARD_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no UTF-8 text"):
        card_of(folder)


@given(st.text())
def test_any_text_may_stand_in_a_readme(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("card")
    (folder / CARD_FILE).write_text(text, encoding="utf-8", newline="")
    assert set(card_metadata(folder)) <= {"base_model", "license"}


def test_model_and_licence_of_a_source_go_into_what_is_made_of_it(tmp_path):
    source = tmp_path / "source"
    save_adapter(load_adapter(adapter()), source)
    (source / CARD_FILE).write_text("---\nbase_model: Qwen/Qwen3-0.6B\nlicense: cc-by-4.0\n---\n")
    save_adapter(load_adapter(source), tmp_path / "copy")
    data = ModelCard.load(tmp_path / "copy" / CARD_FILE).data
    assert (data.base_model, data.license) == ("Qwen/Qwen3-0.6B", "cc-by-4.0")
