import io
import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import mlx.core as mx
import pytest
from huggingface_hub import ModelCard

from mlx_deltamem import attach, load, load_adapter, save_adapter
from mlx_deltamem.adapters.folder import TORCH_FILE
from mlx_deltamem.adapters.hub import REFERENCE_ADAPTER, find_adapter
from mlx_deltamem.adapters.hub_errors import upload_errors
from mlx_deltamem.convert import convert
from mlx_deltamem.core.adapter import CARD_FILE, RESULTS_FILE, WEIGHTS_FILE
from mlx_deltamem.core.config import CONFIG_FILE
from mlx_deltamem.upload import pack, upload, upload_folder
from tests.command_line import assert_refused, run_command
from tests.conftest import adapter, backbone
from tests.hub import fixture as hub_fixture
from tests.hub.faults import ALWAYS
from tests.hub.server import OTHER_TOKEN, READ_TOKEN, TOKEN, Hub

hub = hub_fixture.hub

REPO = "user/memory"
MODEL = "Qwen/Qwen3-0.6B"
OWN_FILES = {CARD_FILE, CONFIG_FILE, WEIGHTS_FILE}
IDS = mx.array([[1, 5, 9, 2, 7, 3]])


@pytest.fixture
def folder(tmp_path):
    save_adapter(load_adapter(adapter()), tmp_path / "memory")
    return tmp_path / "memory"


def packed(folder: Path, repo: str = REPO, model: str = MODEL):
    return pack(folder, repo, model, "mit")


def files_of(hub: Hub, repo: str = REPO) -> dict[str, bytes]:
    """What the Hub holds of a repo, beside what it puts into each by itself."""
    files = hub.repository(repo).files.items()
    return {path: file.content for path, file in files if path != ".gitattributes"}


def run_upload(hub: Hub, folder: Path, *options: str, token: str = TOKEN):
    home = folder.parent / "home"
    options = ("--upload-repo", REPO, "--base-model", MODEL, "--license", "mit", *options)
    return run_command("upload", "--path", folder, *options, **hub.environment(home, token))


def test_what_was_uploaded_comes_back_bit_for_bit(hub, folder, tmp_path):
    model, _ = load(backbone())
    attach(model, folder)
    expected = model(IDS)
    address = upload(packed(folder))
    assert address.startswith(f"{hub.endpoint}/{REPO}/commit/")
    assert files_of(hub).keys() == OWN_FILES
    with hub_fixture.using(hub, tmp_path / "other machine", token=None):
        other, _ = load(backbone(), adapter=REPO)
        assert mx.array_equal(other(IDS), expected)
        assert other.attachment.metadata["source_adapter"].startswith(f"{REPO}@")
    with hub_fixture.using(hub, tmp_path / "other machine", token=None, offline=True):
        offline, _ = load(backbone(), adapter=REPO)
        assert mx.array_equal(offline(IDS), expected)


def test_an_adapter_in_several_parts_arrives_whole(tmp_path):
    save_adapter(load_adapter(adapter()), tmp_path / "memory")
    with Hub(multipart_above=20_000, part_size=16_000) as hub, hub_fixture.using(hub, tmp_path / "home"):
        upload(packed(tmp_path / "memory"))
        assert files_of(hub)[WEIGHTS_FILE] == (tmp_path / "memory" / WEIGHTS_FILE).read_bytes()
        assert sum(request.method == "PUT" for request in hub.requests) == 3


def test_the_card_that_goes_up_is_complete_and_stays_in_the_folder(hub, folder):
    upload(packed(folder))
    card = files_of(hub)[CARD_FILE].decode()
    assert card == (folder / CARD_FILE).read_text()
    assert f"mlx_deltamem.chat --model {MODEL} --adapter {REPO}" in card
    data = ModelCard(card).data
    assert (data.base_model, data.license, data.library_name) == (MODEL, "mit", "mlx")
    ModelCard(card).validate()


def test_nothing_but_the_adapters_own_files_goes_up(hub, folder):
    (folder / "notes.txt").write_text("my password")
    (folder / ".env").write_text("TOKEN=hf_x")
    (folder / "plots").mkdir()
    for name in ("curve.png", "plots/gates.png", "a b.png", "c d.png", "not shown.png", "hidden.png"):
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder.parent / "outside.png").write_bytes(b"secret")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.png").write_bytes(b"secret")
    shown = f"""![loss](curve.png "Loss") ![](./plots/gates.png) <img width="9" src='a%20b.png'> ![]( <c d.png>)
    ![](../outside.png) ![](https://x.y/z.png) ![](missing.png) ![]({folder}/curve.png) ![](plots/../hidden.png)
    ![](.git/x.png) ![](notes.txt)
    """
    (folder / CARD_FILE).write_text((folder / CARD_FILE).read_text() + shown)
    (folder / RESULTS_FILE).write_text(json.dumps({"results": [{"task": "recall", "value": 0.5}]}))
    parcel = packed(folder)
    assert parcel.left_out == [".env", ".git", "hidden.png", "not shown.png", "notes.txt"]
    upload(parcel)
    assert files_of(hub).keys() == OWN_FILES | {RESULTS_FILE, "curve.png", "plots/gates.png", "a b.png", "c d.png"}
    assert "| recall |" in files_of(hub)[CARD_FILE].decode()


def test_a_dry_run_shows_all_and_asks_the_hub_nothing(hub, folder):
    before = (folder / CARD_FILE).read_bytes()
    result = run_upload(hub, folder, "--dry-run")
    assert result.returncode == 0, result.stderr
    for shown in (*OWN_FILES, REPO, "10,776 parameters in 3 layers, all finite", "46.0 kB", "Nothing was sent"):
        assert shown in result.stdout
    assert hub.requests == []
    assert (folder / CARD_FILE).read_bytes() == before


def test_a_second_upload_sends_no_weights_again(hub, folder):
    upload(packed(folder))
    hub.requests.clear()
    upload(packed(folder))
    assert not [request for request in hub.requests if request.method == "PUT"]
    assert files_of(hub).keys() == OWN_FILES


def test_a_repo_is_private_on_request(hub, folder):
    upload(packed(folder), private=True)
    assert hub.repository(REPO).private
    with pytest.raises(FileNotFoundError, match="if it is private, log in"), hub_fixture.using(hub, folder, token=None):
        load_adapter(REPO)
    upload(packed(folder), private=True)


def test_a_public_repo_is_not_called_private(hub, folder):
    upload(packed(folder))
    with pytest.raises(ValueError, match="is there already and public"):
        upload(packed(folder), private=True)


def test_a_repo_for_another_model_is_overwritten_only_on_request(hub, folder):
    upload(packed(folder, model="Qwen/Qwen3-4B"))
    before = files_of(hub)
    with pytest.raises(ValueError, match=r"is for Qwen/Qwen3-4B, this adapter for Qwen/Qwen3-0\.6B; .* --yes"):
        upload(packed(folder))
    assert files_of(hub) == before
    questions = []
    upload(packed(folder), confirm=lambda question: not questions.append(question))
    assert len(questions) == 1
    assert files_of(hub) != before


def test_a_repo_with_something_else_in_it_is_overwritten_only_on_request(hub, folder):
    hub.create(REPO, {"config.json": b"{}", "model.safetensors": b"x"})
    result = run_upload(hub, folder)
    assert_refused(result, "holds no δ-mem adapter (config.json, model.safetensors); name another repo, or give --yes")
    assert files_of(hub).keys() == {"config.json", "model.safetensors"}
    assert run_upload(hub, folder, "--yes").returncode == 0
    assert files_of(hub).keys() > OWN_FILES


@pytest.mark.parametrize(
    ("pattern", "fault", "message"),
    [
        ("repos/create", {"status": 401}, r"does not accept the token that came with user/memory \(401\)"),
        ("repos/create", {"status": 403}, r"does not let you do this with user/memory \(403\)"),
        ("POST .*/commit/", {"status": 403}, r"\(403\)"),
        ("POST .*/commit/", {"status": 404}, r"\(404\)"),
        ("preupload", {"status": 429, "headers": {"Retry-After": "7"}}, r"\(429\); .* in 7 seconds"),
        ("POST .*/commit/", {"status": 429}, r"\(429\); try again later"),
        ("^PUT ", {"status": 500}, r"failed over user/memory \(500\)"),
        ("^PUT ", {"cut": True}, "did not get through .* try again"),
        ("POST .*/commit/", {"cut": True}, "did not get through .* try again"),
        ("POST .*/commit/", {"status": 503}, r"\(503\)"),
        ("GET /api/models", {"status": 500}, r"\(500\)"),
        ("validate-yaml", {"cut": True}, "did not get through"),
    ],
)
def test_what_the_hub_refuses_is_one_line_and_a_second_run_succeeds(hub, folder, pattern, fault, message):
    hub.fail(pattern, times=ALWAYS, **fault)
    with pytest.raises(ValueError, match=message) as error:
        upload(packed(folder))
    assert "\n" not in str(error.value)
    assert TOKEN not in str(error.value)
    assert not hub.api.repositories or not files_of(hub).keys() & OWN_FILES
    hub.faults.clear()
    upload(packed(folder))
    assert files_of(hub).keys() == OWN_FILES


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 429, "headers": {"Retry-After": "3"}}, {"reset": True}])
def test_what_fails_once_is_tried_again(hub, folder, fault):
    hub.fail("^PUT ", **fault)
    upload(packed(folder))
    assert files_of(hub).keys() == OWN_FILES
    assert len(hub.slept) == 1


@pytest.mark.parametrize("token", [READ_TOKEN, OTHER_TOKEN, "hf_expired"])
def test_a_token_that_may_not_write_is_one_line(hub, folder, token):
    result = run_upload(hub, folder, token=token)
    assert_refused(result, "(403)" if token in (READ_TOKEN, OTHER_TOKEN) else "(401)")
    assert "hf_" not in result.stderr + result.stdout


def test_without_a_token_it_says_how_to_log_in(hub, folder):
    with hub_fixture.using(hub, folder.parent / "nobody", token=None), pytest.raises(ValueError, match="hf auth login"):
        upload(packed(folder))


def test_without_a_network_it_says_so(folder, tmp_path):
    with Hub() as gone, hub_fixture.using(gone, tmp_path):
        pass
    with hub_fixture.using(gone, tmp_path), pytest.raises(ValueError, match="did not get through"):
        upload(packed(folder))


def test_offline_mode_is_named(hub, folder, tmp_path):
    with hub_fixture.using(hub, tmp_path, offline=True), pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        upload(packed(folder))


def test_the_token_goes_to_the_hub_alone(hub, folder):
    result = run_upload(hub, folder)
    assert result.returncode == 0, result.stderr
    assert "Uploaded: " in result.stdout
    assert {request.host for request in hub.requests if request.token_sent} == {"hub"}
    assert TOKEN not in result.stdout + result.stderr


def test_a_conversion_is_uploaded_at_once(hub, tmp_path):
    result = run_command(
        *("convert", "--torch-path", adapter(), "--mlx-path", tmp_path / "out", "--upload-repo", REPO),
        *("--base-model", MODEL, "--license", "mit", "--private"),
        **hub.environment(tmp_path / "home"),
    )
    assert result.returncode == 0, result.stderr
    assert files_of(hub).keys() == OWN_FILES
    assert hub.repository(REPO).private


def test_a_change_on_the_hub_is_overwritten_only_on_request(hub, folder):
    upload(packed(folder))
    hub.commit(REPO, {CARD_FILE: b"---\nlicense: mit\n---\nWritten on the Hub's page."})
    with pytest.raises(ValueError, match=r"was changed on the Hub \(\"Commit by the test\"\); .* --yes"):
        upload(packed(folder))
    assert b"Written on the Hub's page" in files_of(hub)[CARD_FILE]
    upload(packed(folder), confirm=lambda _: True)
    upload(packed(folder))


def test_a_readme_alone_is_not_overwritten_unasked(hub, folder):
    hub.create(REPO, {CARD_FILE: b"# Something else"})
    with pytest.raises(ValueError, match=r"holds no δ-mem adapter \(README\.md\)"):
        upload(packed(folder))


def test_what_comes_to_the_repo_meanwhile_is_not_overwritten(hub, folder):
    upload(packed(folder), private=False)
    hub.commit(REPO, {CARD_FILE: b"first"})

    def meanwhile(_: str) -> bool:
        hub.commit(REPO, {CARD_FILE: b"second"})
        return True

    with pytest.raises(ValueError, match="changed on the Hub meanwhile"):
        upload(packed(folder), confirm=meanwhile)
    assert files_of(hub)[CARD_FILE] == b"second"


def test_what_was_checked_is_what_is_sent(hub, folder):
    parcel = packed(folder)
    weights, card = (folder / WEIGHTS_FILE).read_bytes(), "edited while the question was on the screen"
    (folder / WEIGHTS_FILE).write_bytes(b"x")
    (folder / CARD_FILE).write_text(card)
    upload(parcel)
    assert files_of(hub) == parcel.contents
    assert files_of(hub)[WEIGHTS_FILE] == weights
    assert (folder / CARD_FILE).read_text() == card


def test_a_refused_upload_leaves_the_folder_as_it_was(hub, folder):
    before = (folder / CARD_FILE).read_bytes()
    hub.fail("POST .*/commit/", 403)
    with pytest.raises(ValueError, match="403"):
        upload(packed(folder))
    assert (folder / CARD_FILE).read_bytes() == before


def test_the_hubs_cache_is_not_written(hub, folder):
    upload(packed(folder))
    cached = find_adapter(REPO).path
    upload(packed(cached, "user/fork"))
    assert "--adapter user/fork" in files_of(hub, "user/fork")[CARD_FILE].decode()
    assert f"--adapter {REPO}" in (cached / CARD_FILE).read_text()
    assert f"Made from [{REPO}]" in files_of(hub, "user/fork")[CARD_FILE].decode()


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


def test_names_are_shown_as_they_are(hub, folder):
    odd = folder.rename(folder.parent / "my [red]memory[bold")
    (odd / "no[bold]tes.txt").write_text("x")
    result = run_upload(hub, odd, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "my [red]memory[bold: 10,776" in result.stdout
    assert "Left out: no[bold]tes.txt" in result.stdout
    assert_refused(run_command("upload", "--path", "~nobody-here/x", "--upload-repo", REPO), "there is no home folder")


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


def bad_folders(folder: Path) -> dict[str, str]:
    """What is wrong with a folder by its name, and what the error must say."""
    for name in ("empty", "torch", "nan", "truncated", "lora"):
        shutil.copytree(folder, folder.parent / name)
    for path in (folder.parent / "empty").iterdir():
        path.unlink()
    (folder.parent / "torch" / WEIGHTS_FILE).unlink()
    shutil.copy(Path(adapter()) / TORCH_FILE, folder.parent / "torch")
    weights = mx.load(str(folder / WEIGHTS_FILE))
    weights["model.layers.1.self_attn.beta_bias"] *= float("nan")
    mx.save_safetensors(str(folder.parent / "nan" / WEIGHTS_FILE), weights)
    (folder.parent / "truncated" / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-100])
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (folder.parent / "lora" / name).unlink()
    (folder.parent / "lora" / "adapter_config.json").write_text("{}")
    return {
        "missing": "there is no folder",
        "empty": "is empty",
        "torch": "convert it with mlx_deltamem.convert",
        "nan": "beta_bias holds NaN or infinite values (layer 1)",
        "truncated": "is damaged",
        "lora": "is a LoRA or PEFT adapter",
    }


def test_a_folder_that_is_no_whole_adapter_is_refused_before_anything_is_sent(hub, folder):
    for name, message in bad_folders(folder).items():
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            pack(folder.parent / name, REPO, MODEL, "mit")
        assert message in str(error.value)
    assert hub.requests == []


def test_a_card_that_lacks_something_is_refused(hub, folder):
    result = run_command("upload", "--path", folder, "--upload-repo", REPO, **hub.environment(folder.parent / "home"))
    assert_refused(result, "lacks base_model and license; give --base-model USER/NAME and --license NAME")
    with pytest.raises(ValueError, match=r"does not accept the model card of .*memory: .*license"):
        upload(pack(folder, REPO, MODEL, "no such licence"))
    assert not hub.api.repositories


@pytest.mark.parametrize("name", ["memory", "a/b/c", "../x", "user/", "user/mem ory", "user/memory@main"])
def test_a_name_that_is_no_repos_is_refused(folder, name):
    with pytest.raises(ValueError, match="expected the name of a Hub repo"):
        pack(folder, name, MODEL, "mit")
    with pytest.raises(ValueError, match="--base-model is"):
        pack(folder, REPO, name, "mit")


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("Network error: Request error: HTTP status client error (403 Forbidden), domain: https://x.y/z", "(403)"),
        ("Network error: Request error: error decoding response body, domain: no-url", "did not get through (Network"),
    ],
)
def test_what_the_xet_transport_raises_is_one_line(problem, message):
    with pytest.raises(ValueError) as error, upload_errors(REPO):
        raise ConnectionError(problem)
    assert message in str(error.value)
