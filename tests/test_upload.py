"""The upload as a command, and as the end of a conversion."""

import io
import json
import sys
from argparse import Namespace
from pathlib import Path

import mlx.core as mx
import pytest
from huggingface_hub import ModelCard

from mlx_deltamem import load_adapter
from mlx_deltamem.adapters.folder import TORCH_FILE
from mlx_deltamem.adapters.names import REFERENCE_ADAPTER
from mlx_deltamem.adapters.publish import pack, upload
from mlx_deltamem.commands.convert import convert
from mlx_deltamem.commands.upload import upload_folder
from mlx_deltamem.core.adapter import CARD_FILE, METRICS_FILE, RESULTS_FILE, WEIGHTS_FILE
from mlx_deltamem.core.config import CONFIG_FILE
from tests.adapters import test_publish
from tests.adapters.test_publish import MODEL, OWN_FILES, REPO, files_of
from tests.command_line import assert_refused, run_command
from tests.conftest import adapter
from tests.hub.server import OTHER_TOKEN, READ_TOKEN, TOKEN, Hub

hub, folder = test_publish.hub, test_publish.folder


def run_upload(hub: Hub, folder: Path, *options: str, token: str = TOKEN):
    home = folder.parent / "home"
    options = ("--upload-repo", REPO, "--base-model", MODEL, "--license", "mit", *options)
    return run_command("upload", "--path", folder, *options, **hub.environment(home, token))


@pytest.mark.slow
def test_a_dry_run_shows_all_and_asks_the_hub_nothing(hub, folder):
    before = (folder / CARD_FILE).read_bytes()
    result = run_upload(hub, folder, "--dry-run")
    assert result.returncode == 0, result.stderr
    for shown in (*OWN_FILES, REPO, "10,776 parameters in 3 layers, all finite", "46.0 kB", "Nothing was sent"):
        assert shown in result.stdout
    # The sizes to the byte: what is listed is what an upload sends.
    parcel = pack(folder, REPO, MODEL, "mit")
    for name, content in parcel.contents.items():
        (line,) = (line for line in result.stdout.splitlines() if f" {name} " in line)
        assert f" {len(content):,} " in line
    assert f" {sum(map(len, parcel.contents.values())):,} " in result.stdout
    assert hub.requests == []
    assert (folder / CARD_FILE).read_bytes() == before


@pytest.mark.slow
def test_a_linked_file_is_not_sent(hub, folder):
    (folder / METRICS_FILE).symlink_to("/etc/passwd")
    for options in (("--dry-run",), ()):
        result = run_upload(hub, folder, *options)
        assert_refused(result, f"{METRICS_FILE} is a symbolic link; expected files in the folder itself")
        assert "root:" not in result.stdout + result.stderr
    assert hub.requests == []


@pytest.mark.slow
def test_a_repo_with_something_else_in_it_is_overwritten_only_on_request(hub, folder):
    hub.create(REPO, {"config.json": b"{}", "model.safetensors": b"x"})
    result = run_upload(hub, folder)
    assert_refused(
        result, "does not hold a δ-mem adapter (config.json, model.safetensors); name another repo, or give --yes"
    )
    assert files_of(hub).keys() == {"config.json", "model.safetensors"}
    assert run_upload(hub, folder, "--yes").returncode == 0
    assert files_of(hub).keys() > OWN_FILES


@pytest.mark.slow
@pytest.mark.parametrize("token", [READ_TOKEN, OTHER_TOKEN, "hf_expired"])
def test_a_token_that_may_not_write_is_one_line(hub, folder, token):
    result = run_upload(hub, folder, token=token)
    assert_refused(result, "(403)" if token in (READ_TOKEN, OTHER_TOKEN) else "(401)")
    assert "hf_" not in result.stderr + result.stdout


@pytest.mark.slow
def test_the_token_goes_to_the_hub_alone(hub, folder):
    result = run_upload(hub, folder)
    assert result.returncode == 0, result.stderr
    assert "Uploaded: " in result.stdout
    assert {request.host for request in hub.requests if request.token_sent} == {"hub"}
    assert TOKEN not in result.stdout + result.stderr


@pytest.mark.slow
def test_a_conversion_is_uploaded_at_once(hub, tmp_path):
    result = run_command(
        *("convert", "--torch-path", adapter(), "--mlx-path", tmp_path / "out", "--upload-repo", REPO),
        *("--base-model", MODEL, "--license", "mit", "--private"),
        **hub.environment(tmp_path / "home"),
    )
    assert result.returncode == 0, result.stderr
    assert files_of(hub).keys() == OWN_FILES
    assert hub.repository(REPO).private


def test_attribution_goes_through_all_hands(hub, tmp_path):
    config, weights = ((Path(adapter()) / name).read_bytes() for name in (CONFIG_FILE, TORCH_FILE))
    hub.create(REFERENCE_ADAPTER, {CONFIG_FILE: config, TORCH_FILE: weights})
    convert(REFERENCE_ADAPTER, tmp_path / "anna")
    upload(pack(tmp_path / "anna", "user/anna", MODEL, "mit"))
    upload(pack(tmp_path / "anna", "user/anna"))
    convert("user/anna", tmp_path / "torch", to="torch")
    convert(str(tmp_path / "torch"), tmp_path / "bo", dtype=mx.bfloat16)
    convert(str(tmp_path / "bo"), tmp_path / "cy", dtype=mx.float32)
    upload(pack(tmp_path / "cy", "user/cy", MODEL))
    link = f"Made from [{REFERENCE_ADAPTER}](https://huggingface.co/{REFERENCE_ADAPTER}) at revision"
    for repo in ("user/anna", "user/cy"):
        card = files_of(hub, repo)[CARD_FILE].decode()
        assert link in card
        assert "which is under the licence cc-by-4.0." in card
        assert ModelCard(card).data.license == "mit"
    assert "Changed: weights stored as bfloat16, then float32." in card


@pytest.mark.slow
def test_names_are_shown_as_they_are(hub, folder):
    odd = folder.rename(folder.parent / "my [red]memory[bold")
    (odd / "no[bold]tes.txt").write_text("x")
    result = run_upload(hub, odd, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "my [red]memory[bold: 10,776" in result.stdout
    assert "Left out: no[bold]tes.txt" in result.stdout
    assert_refused(run_command("upload", "--path", "~nobody-here/x", "--upload-repo", REPO), "there is no home folder")


@pytest.mark.slow
def test_what_was_measured_is_shown(hub, folder):
    """How far the adapter moves its model, beside what it recalls; or that nobody knows."""
    share = {"value": 5.0, "interval": [0.1, 24.9], "prompts": 20}
    ratio = {
        "memory": "written",
        "meaning": "written as it is read",
        "ratio": 1.25,
        "interval": [1.1, 1.4],
        "texts": 12,
    }
    damaged = {**ratio, "meaning": "only read", "ratio": None, "interval": [None, None]}
    health = {"perplexity": [ratio, damaged], "replies_equal": share, "tokens_alike": share}
    row = {"condition": "chat", "metric": "exact", "value": 29.2, "interval": [17.0, 42.0], "questions": 48}
    rows = [{"task": "recall", **row}, {"task": "recall, update", **row, "value": 77.7}]
    for document, shown, missing in (
        ({"results": []}, (), "how far the adapter moves its model and what it recalls. Measure it with"),
        ({"results": rows}, ("29.2", "17 to 42"), "Not measured: how far the adapter moves its model. Measure"),
        ({"results": [], "health": health}, ("1.25", "1.1 to 1.4", "– to –"), "Not measured: what it recalls. Measure"),
        ({"results": rows, "health": health}, ("1.25", "0.1 to 24.9", "29.2"), ""),
    ):
        (folder / RESULTS_FILE).write_text(json.dumps(document))
        result = run_upload(hub, folder, "--dry-run")
        assert result.returncode == 0, result.stderr
        assert all(each in result.stdout for each in shown) and "77.7" not in result.stdout
        assert missing in result.stdout and ("Not measured" in result.stdout) == bool(missing)


@pytest.mark.parametrize(("answer", "uploaded"), [("y\n", True), ("n\n", False), ("\n", False), ("", False)])
def test_a_question_on_a_terminal_is_answered_there(hub, folder, monkeypatch, answer, uploaded):
    hub.create(REPO, {"model.safetensors": b"x"})
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    options = Namespace(upload_repo=REPO, base_model=MODEL, license="mit", private=False, yes=False)
    if uploaded:
        upload_folder(folder, options)
    else:
        with pytest.raises(ValueError, match="--yes"):
            upload_folder(folder, options)
    assert (WEIGHTS_FILE in files_of(hub)) is uploaded


@pytest.mark.slow
def test_a_conversion_that_could_not_be_uploaded_says_how_to_go_on(hub, tmp_path):
    options = ("convert", "--torch-path", adapter(), "--mlx-path", tmp_path / "out")
    environment = hub.environment(tmp_path / "home", READ_TOKEN)
    assert_refused(run_command(*options, "--private", **environment), "go with --upload-repo")
    assert_refused(run_command(*options, "--upload-repo", "memory", **environment), "expected the name of a Hub repo")
    torch = run_command(*options, "--to", "torch", "--upload-repo", REPO, **environment)
    assert_refused(torch, "--upload-repo goes with --to mlx")
    assert not (tmp_path / "out").exists()
    upload_ = ("--upload-repo", REPO, "--base-model", MODEL, "--license", "mit")
    assert_refused(run_command(*options, *upload_, **environment), "out: go on with mlx_deltamem.upload)")
    assert load_adapter(tmp_path / "out").parameters == 10776


@pytest.mark.slow
def test_a_card_that_lacks_something_is_refused(hub, folder):
    result = run_command("upload", "--path", folder, "--upload-repo", REPO, **hub.environment(folder.parent / "home"))
    assert_refused(result, "lacks base_model and license; give --base-model USER/NAME and --license NAME")
    with pytest.raises(ValueError, match=r"does not accept the model card of .*memory: .*license"):
        upload(pack(folder, REPO, MODEL, "no such licence"))
    assert not hub.api.repositories
