import hashlib
import json
import os
import time
from dataclasses import replace

import mlx.core as mx
import pytest
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_deltamem import load_adapter
from mlx_deltamem.adapters.card.card import make_card
from mlx_deltamem.adapters.card.folder import card_metadata, load_with_card, save_with_card, write_card
from mlx_deltamem.adapters.card.sections import shown_pictures
from mlx_deltamem.adapters.grow import with_key_shift, with_read_gates
from mlx_deltamem.core.adapter import CARD_FILE, METRICS_FILE, RESULTS_FILE, WEIGHTS_FILE
from mlx_deltamem.core.config import CONFIG_FILE
from tests.conftest import adapter

_SMALL = load_adapter(adapter())


@pytest.fixture
def folder(tmp_path):
    """An adapter's folder with the card it got when it was saved."""
    save_with_card(load_adapter(adapter()), tmp_path / "memory")
    return tmp_path / "memory"


def card_of(folder, **given):
    return make_card(folder, load_with_card(folder), **given)


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


def test_it_names_fields_that_the_reference_does_not_have(folder):
    grown = with_key_shift(with_read_gates(load_adapter(adapter())), 1.0)
    save_with_card(grown, folder)
    text = (folder / CARD_FILE).read_text()
    assert "| gates | one per row, and one per head on what is read |" in text
    assert "| keys | with the memory query of the token written before (key shift) |" in text


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


def test_new_weights_bring_new_facts_and_leave_the_rest(folder):
    edit(folder, ("<!-- mlx_deltamem:files", "My words.\n\n<!-- mlx_deltamem:files"))
    before = load_with_card(folder)
    save_with_card(replace(before, weights={name: x.astype(mx.bfloat16) for name, x in before.weights.items()}), folder)
    text = (folder / CARD_FILE).read_text()
    assert "| weights | bfloat16 |" in text
    assert "My words." in text
    assert hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest() in text


def test_a_card_all_by_hand_is_left_alone_until_it_is_published(folder):
    (folder / CARD_FILE).write_text("# Mine\n")
    save_with_card(load_with_card(folder), folder)
    assert (folder / CARD_FILE).read_text() == "# Mine\n"
    card = card_of(folder, base_model="a/b", licence="mit")
    assert "---\n# Mine\n\n<!-- mlx_deltamem:usage" in card.text
    assert "## Files" in card.text
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


def test_what_the_adapter_does_to_the_model_is_in_it(folder):
    share = {"value": 37.5, "interval": [15.0, 60.25], "prompts": 8}
    ratios = [
        {"memory": "written", "meaning": "written | so", "ratio": 1.03125, "interval": [1.0, 1.0625], "texts": 12},
        {"memory": "carried_read", "meaning": "only read", "ratio": None, "interval": [2.0, None], "texts": 12},
    ]
    health = {"perplexity": ratios, "replies_equal": share, "tokens_alike": share | {"value": 80.0}, "replies": []}
    (folder / RESULTS_FILE).write_text(json.dumps({"results": [], "health": health}))
    text = card_of(folder).text
    assert "## Results" not in text and "## What it does to the model" in text
    assert "| written \\| so | 1.031 | 1 to 1.062 | 12 |" in text
    assert "| only read |  | 2 to  | 12 |" in text
    assert "| whole replies | 37.5 | 15 to 60.25 | 8 |" in text
    assert "| likeliest tokens | 80 | 15 to 60.25 | 8 |" in text
    results = [{"task": "recall", "metric": "exact", "value": 3.0}]
    (folder / RESULTS_FILE).write_text(json.dumps({"results": results, "health": health}))
    text = card_of(folder).text
    assert text.index("## Results") < text.index("## What it does to the model") < text.index("## Files")


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"results": 3}', '{"results": [3]}', '{"results": [], "health": {}}'],
)
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
    assert load_with_card(folder).parameters == 10776
    save_with_card(load_with_card(folder), folder)
    assert (folder / CARD_FILE).read_text() == f"---\n{block}\n---\ntext"


def test_a_card_that_is_no_text_is_named(folder):
    (folder / CARD_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        card_of(folder)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.text() | st.text(st.sampled_from("-\r\n#: ab<>!\t\ufeff\u2028\x85é")))
@example("\r")
@example("\r\n")
@example("a\r\nb\n---\r\n")
def test_any_text_may_stand_in_a_readme(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("card")
    save_with_card(_SMALL, folder)
    (folder / CARD_FILE).write_text(text, encoding="utf-8", newline="")
    assert set(card_metadata(folder)) <= {"base_model", "license"}
    try:
        card = make_card(folder, _SMALL, base_model="a/b", licence="mit")
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        write_card(folder, card)
        assert make_card(folder, _SMALL).text == card.text


def test_model_and_licence_of_a_source_go_into_what_is_made_of_it(tmp_path):
    source = tmp_path / "source"
    save_with_card(load_adapter(adapter()), source)
    (source / CARD_FILE).write_text("---\nbase_model: Qwen/Qwen3-0.6B\nlicense: cc-by-4.0\n---\n")
    save_with_card(load_with_card(source), tmp_path / "copy")
    data = ModelCard.load(tmp_path / "copy" / CARD_FILE).data
    assert (data.base_model, data.license) == ("Qwen/Qwen3-0.6B", "cc-by-4.0")


def test_yaml_by_hand_keeps_its_spelling(folder):
    by_hand = "language: no  # Norwegian\nversion: 1.10\nzip: 012\nat: 12:30\nmodel-index: []\ntags: [bees, mlx]\n"
    (folder / CARD_FILE).write_text(f"---\n{by_hand}library_name: mlx\n---\nBees.\n")
    text = card_of(folder, base_model="a/b", licence="mit").text
    for line in by_hand.splitlines()[:-1]:
        assert f"\n{line}\n" in text
    data = make_card(folder, load_with_card(folder), base_model="a/b", licence="mit").data
    assert data["tags"] == ["bees", "mlx", "delta-mem", "memory", "arxiv:2605.12357"]
    assert (data["base_model"], data["license"]) == ("a/b", "mit")


def test_a_value_given_anew_replaces_the_lines_of_the_old_one(folder):
    (folder / CARD_FILE).write_text("---\nbase_model:\n- a/b\n- c/d\nlicense: mit  # ours\nother: 1\n---\n")
    text = card_of(folder, base_model="e/f", licence="apache-2.0").text
    assert text.startswith("---\nbase_model: e/f\nlicense: apache-2.0\nother: 1\n")


def test_metadata_in_a_form_that_cannot_be_completed_are_named(folder):
    (folder / CARD_FILE).write_text("---\n{license: mit}\n---\n")
    with pytest.raises(ValueError, match=r"cannot be completed; write .*base_model.* by hand"):
        card_of(folder, base_model="a/b")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_line_endings_and_a_byte_order_mark_do_no_harm(folder, ending):
    content = b"\xef\xbb\xbf" + (folder / CARD_FILE).read_bytes().replace(b"\n", ending.encode())
    (folder / CARD_FILE).write_bytes(content)
    card = card_of(folder, base_model="a/b", licence="mit")
    assert card.kept == []
    assert card.text.count("\n") == card.text.count(ending)
    assert ModelCard(card.text).data.license == "mit"


@pytest.mark.parametrize("changed", ["---\nlibrary", "license: mit\n", "---\nBees", "--adapter a/mine\n"])
def test_lines_that_end_in_both_ways_lose_nothing(folder, changed):
    (folder / CARD_FILE).write_text("---\nlibrary_name: mlx\nbase_model: a/b\nlicense: mit\n---\nBees.\n")
    text = card_of(folder, repo="a/mine").text
    (folder / CARD_FILE).write_text(text)
    content = text.replace(changed, changed.replace("\n", "\r\n"))
    assert content != text
    (folder / CARD_FILE).write_bytes(content.encode())
    assert load_with_card(folder).metadata["license"] == "mit"
    card = make_card(folder, load_with_card(folder))
    assert (card.missing, card.kept) == ([], [])
    assert card.text.replace("\r\n", "\n") == text


def test_a_name_in_quotes_is_not_written_a_second_time(folder):
    (folder / CARD_FILE).write_text("---\n\"license\": mit\n'base_model': a/b\n---\n")
    text = card_of(folder, base_model="c/d", licence="apache-2.0").text
    assert text.startswith("---\nlicense: apache-2.0\nbase_model: c/d\n")


def test_spaces_that_an_editor_takes_away_are_no_edit(folder):
    text = (folder / CARD_FILE).read_text()
    (folder / CARD_FILE).write_text(text.replace("-->\n", "-->\n\n").replace("|\n", "|  \n"))
    assert card_of(folder).kept == []


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("library_name: peft", "library_name is peft, expected mlx"),
        ("base_model_relation: finetune", "base_model_relation is finetune, expected adapter"),
        ("base_model: /home/anna/qwen", "base_model is /home/anna/qwen, expected a Hub repo"),
        ("base_model: [a/b, qwen]", "base_model is qwen, expected a Hub repo"),
        ("license: other", "license is other, which needs license_name and license_link"),
    ],
)
def test_what_must_be_mended_is_listed(folder, block, problem):
    (folder / CARD_FILE).write_text(f"---\n{block}\n---\n")
    assert any(problem in found for found in card_of(folder).problems)


def test_a_list_of_files_by_hand_must_be_true(folder):
    edit(folder, ("## Files", "## The files"))
    assert card_of(folder).problems == []
    weights = {name: x * 2 for name, x in load_with_card(folder).weights.items()}
    save_with_card(replace(load_with_card(folder), weights=weights), folder)
    assert "section on files was edited and has other checksums" in card_of(folder).problems[0]


def test_two_models_are_both_named(folder):
    edit(folder, ("library_name: mlx", "library_name: mlx\nbase_model: [a/b, c/d]"))
    text = card_of(folder).text
    assert "for [a/b](https://huggingface.co/a/b) and [c/d](https://huggingface.co/c/d), by" in text
    assert "--model a/b --adapter" in text


def test_what_a_reader_writes_of_adapters_is_no_name_of_this_one(folder):
    edit(folder, ("<!-- mlx_deltamem:files", "Try `--adapter other/thing\n` too.\n\n<!-- mlx_deltamem:files"))
    assert "# thing" not in card_of(folder).text


def test_the_source_is_named_in_every_card(folder):
    adapter_ = replace(load_with_card(folder), metadata={"source_adapter": "x/y@abc", "source_license": "cc-by-4.0"})
    link = "Made from [x/y](https://huggingface.co/x/y) at revision `abc`, which is under the licence cc-by-4.0."
    text = (folder / CARD_FILE).read_text()
    start, end = text.index("<!-- mlx_deltamem:provenance"), text.index("<!-- mlx_deltamem:files")
    for by_hand in ("# Mine\n", text[:start] + text[end:]):
        (folder / CARD_FILE).write_text(by_hand)
        card = make_card(folder, adapter_)
        assert link in card.text
        assert card.data["source_license"] == "cc-by-4.0"


def test_a_card_that_is_a_folder_is_no_harm_to_the_weights(folder):
    (folder / CARD_FILE).unlink()
    (folder / CARD_FILE).mkdir()
    save_with_card(load_with_card(folder), folder)
    assert load_with_card(folder).parameters == 10776
    with pytest.raises(OSError, match="directory"):
        card_of(folder)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 12)
)
BLOCKS = {
    "deep": "base_model: " + "[" * 5000,
    "bomb": BOMB,
    "bomb as a name": BOMB + "license: *a11\n",
    "tags": "tags: [{a: b}]",
    "keys": "5: x",
    "digits": "a: " + "9" * 5000,
    "long": "a: " + "x" * 300_000,
    "class": "a: !!python/object/apply:os.system [ls]",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BLOCKS)
def test_metadata_that_nobody_wrote_are_one_line(case, folder):
    (folder / CARD_FILE).write_text(f"---\n{BLOCKS[case]}\n---\n# x\n")
    began = time.process_time()
    with pytest.raises(ValueError, match=r"the metadata block of .*README.md is damaged \(.*\); repair it") as error:
        card_of(folder)
    assert len(str(error.value)) < 800
    assert card_metadata(folder) == {}
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("![recall, 95 % [44, 53]](a.png)", "a.png"),
        ("![a [b] and [c]](<a b.png>)", "a b.png"),
        ("![x](curve(1).png)", "curve(1).png"),
        ('[![x](a.png "a title")](https://a.b)', "a.png"),
        ('<IMG alt="x" SRC = "a.png">', "a.png"),
    ],
)
def test_brackets_in_its_text_or_name_do_not_hide_a_picture(folder, text, name):
    (folder / name).write_bytes(b"")
    assert shown_pictures(folder, f"# Bees\n\n{text}\n") == [name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    [
        *("![", "![x", "![[a]", "![](", "![](<", "![x](a(", "![x](a(b)", "<img ", "<img src='", "<img src "),
        *("<!-- mlx_deltamem:title 0123456789abcdef -->", "---\n", "--- "),
    ],
)
def test_a_card_of_many_beginnings_takes_no_quadratic_time(piece, folder):
    (folder / CARD_FILE).write_text(piece * (900_000 // len(piece)))
    began = time.process_time()
    shown_pictures(folder, card_of(folder).text)
    assert time.process_time() - began < 10


def test_a_card_that_is_too_large_or_a_pipe_is_not_read(folder):
    (folder / CARD_FILE).write_text("x" * (1 << 20) + "x")
    with pytest.raises(ValueError, match=r"README\.md is too large"):
        card_of(folder)
    (folder / CARD_FILE).unlink()
    os.mkfifo(folder / CARD_FILE)
    with pytest.raises(ValueError, match=r"README\.md is a pipe; expected a file"):
        card_of(folder)
    assert card_metadata(folder) == {}


@pytest.mark.parametrize(
    "content",
    [
        *(f'{{"results": [{{"task": {"[" * depth}{"]" * depth}}}]}}' for depth in (98, 900, 100_000)),
        '{"results": [{"task": "\\ud800"}]}',
        '{"results": [' + "0," * 300_000 + "0]}",
        '{"results": [{"task": ' + "9" * 5000 + "}]}",
    ],
    ids=lambda content: content[:30],
)
def test_results_that_nobody_wrote_are_one_line(content, folder):
    (folder / RESULTS_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"results\.json is damaged \(.*\); expected an object") as error:
        card_of(folder)
    assert len(str(error.value)) < 800


@pytest.mark.parametrize("seconds", [str(10**400), "1e300", "-1", "NaN", "Infinity", "true", '"x"', "[[]]"])
def test_a_duration_that_is_none_is_left_out(seconds, folder):
    trained = load_adapter(folder)
    (folder / METRICS_FILE).write_text(f'{{"iteration": 1, "seconds": {seconds}}}\n')
    card = make_card(folder, replace(trained, metadata={**trained.metadata, "trained": "for 1 step"}))
    assert "It took" not in card.text or seconds == "true"
