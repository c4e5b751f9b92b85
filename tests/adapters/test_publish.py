"""Adapters published on a loopback Hub: exactly the checked files, complete or not at all."""

import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
import yaml
from huggingface_hub import ModelCard

from mlx_deltamem import attach, load, load_adapter
from mlx_deltamem.adapters.card.folder import load_with_card, save_with_card
from mlx_deltamem.adapters.folder import TORCH_FILE
from mlx_deltamem.adapters.hub import find_adapter
from mlx_deltamem.adapters.hub_errors import upload_errors
from mlx_deltamem.adapters.publish import _keep_card, pack, public_name, published_run, upload
from mlx_deltamem.core.adapter import CARD_FILE, CURVES_FILE, METRICS_FILE, RESULTS_FILE, SETTINGS_FILE, WEIGHTS_FILE
from mlx_deltamem.core.config import CONFIG_FILE
from tests.conftest import adapter, backbone
from tests.hub import fixture as hub_fixture
from tests.hub.faults import ALWAYS
from tests.hub.server import TOKEN, Hub

hub = hub_fixture.hub

REPO = "user/memory"
MODEL = "Qwen/Qwen3-0.6B"
OWN_FILES = {CARD_FILE, CONFIG_FILE, WEIGHTS_FILE}
IDS = mx.array([[1, 5, 9, 2, 7, 3]])


@pytest.fixture
def folder(tmp_path):
    save_with_card(load_adapter(adapter()), tmp_path / "memory")
    return tmp_path / "memory"


def packed(folder: Path, repo: str = REPO, model: str = MODEL):
    return pack(folder, repo, model, "mit")


def files_of(hub: Hub, repo: str = REPO) -> dict[str, bytes]:
    """The files of a repo on the Hub, without the file that the Hub adds to each."""
    files = hub.repository(repo).files.items()
    return {path: file.content for path, file in files if path != ".gitattributes"}


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
    save_with_card(load_adapter(adapter()), tmp_path / "memory")
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
    for name in ("curve.png", "plots/gates.png", "plots/old.png", "a b.png", "c d.png", "not shown.png", "hidden.png"):
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
    assert parcel.left_out == [".env", ".git", "hidden.png", "not shown.png", "notes.txt", "plots/old.png"]
    upload(parcel)
    assert files_of(hub).keys() == OWN_FILES | {RESULTS_FILE, "curve.png", "plots/gates.png", "a b.png", "c d.png"}
    assert "| recall |" in files_of(hub)[CARD_FILE].decode()


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
    with pytest.raises(ValueError, match="exists and is public"):
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "fault", "message"),
    [
        ("repos/create", {"status": 401}, r"does not accept the token that came with user/memory \(401\)"),
        ("repos/create", {"status": 403}, r"does not let you do this with user/memory \(403\)"),
        ("POST .*/commit/", {"status": 403}, r"\(403\)"),
        ("POST .*/commit/", {"status": 404}, r"\(404\)"),
        ("preupload", {"status": 429, "headers": {"Retry-After": "7"}}, r"\(429\); .* in 7 seconds"),
        ("POST .*/commit/", {"status": 429}, r"\(429\); try again later"),
        ("^PUT ", {"status": 500}, r"internal error for user/memory \(500\)"),
        ("^PUT ", {"cut": True}, "failed .* try again"),
        ("POST .*/commit/", {"cut": True}, "failed .* try again"),
        ("POST .*/commit/", {"status": 503}, r"\(503\)"),
        ("GET /api/models", {"status": 500}, r"\(500\)"),
        ("validate-yaml", {"cut": True}, "upload to user/memory failed"),
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


def test_without_a_token_it_says_how_to_log_in(hub, folder):
    with hub_fixture.using(hub, folder.parent / "nobody", token=None), pytest.raises(ValueError, match="hf auth login"):
        upload(packed(folder))


def test_without_a_network_it_says_so(folder, tmp_path):
    with Hub() as gone, hub_fixture.using(gone, tmp_path):
        pass
    with hub_fixture.using(gone, tmp_path), pytest.raises(ValueError, match="upload to user/memory failed"):
        upload(packed(folder))


def test_offline_mode_is_named(hub, folder, tmp_path):
    with hub_fixture.using(hub, tmp_path, offline=True), pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        upload(packed(folder))


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
    with pytest.raises(ValueError, match=r"does not hold a δ-mem adapter \(README\.md\)"):
        upload(packed(folder))


def test_what_comes_to_the_repo_meanwhile_is_not_overwritten(hub, folder):
    upload(packed(folder), private=False)
    hub.commit(REPO, {CARD_FILE: b"first"})

    def meanwhile(_: str) -> bool:
        hub.commit(REPO, {CARD_FILE: b"second"})
        return True

    with pytest.raises(ValueError, match="changed on the Hub in the meantime"):
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


def bad_folders(folder: Path) -> dict[str, str]:
    """Bad folders. By name, the words that the error must have."""
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
        "truncated": "was cut short",
        "lora": "is a LoRA or PEFT adapter",
    }


def test_a_folder_that_is_no_whole_adapter_is_refused_before_anything_is_sent(hub, folder):
    for name, message in bad_folders(folder).items():
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            pack(folder.parent / name, REPO, MODEL, "mit")
        assert message in str(error.value)
    assert hub.requests == []


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
        ("Network error: Request error: error decoding response body, domain: no-url", "failed (Network"),
    ],
)
def test_what_the_xet_transport_raises_is_one_line(problem, message):
    with pytest.raises(ValueError) as error, upload_errors(REPO):
        raise ConnectionError(problem)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("anna/chats", "anna/chats"),
        ("/home/anna/chats", "chats"),
        ("/chats/", "chats"),
        ("../x/y", "y"),
        ("chats", "chats"),
    ],
)
def test_no_path_is_public(place, name):
    assert public_name(place) == name


def test_a_folder_here_is_no_repo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("private/notes").mkdir(parents=True)
    assert public_name("private/notes") == "notes"


@pytest.fixture
def run(tmp_path):
    """The folder of a trained adapter with the other files of a run."""
    options = {"model": "/home/anna/models/tiny", "data": "/home/anna/secret/chats", "start": "", "iters": 200}
    trained = load_adapter(adapter())
    trained = replace(trained, metadata={**trained.metadata, "trained": "for tiny on chats"})
    save_with_card(trained, tmp_path / "run")
    (tmp_path / "run" / SETTINGS_FILE).write_text(yaml.safe_dump(options))
    (tmp_path / "run" / METRICS_FILE).write_text('{"iteration": 1, "train_loss": 1.0, "seconds": 3723.4}\n')
    (tmp_path / "run" / CURVES_FILE).write_bytes(b"a picture")
    (tmp_path / "run" / "checkpoints").mkdir()
    return tmp_path / "run"


def test_a_run_goes_up_without_its_paths(run):
    parcel = packed(run)
    assert {CURVES_FILE, METRICS_FILE, SETTINGS_FILE} < parcel.contents.keys()
    assert parcel.left_out == ["checkpoints"]
    options = yaml.safe_load(parcel.contents[SETTINGS_FILE])
    assert options == {"model": "tiny", "data": "chats", "start": "", "iters": 200}
    assert not any(b"anna/secret" in content or b"/home" in content for content in parcel.contents.values())


def test_an_adapter_that_was_not_trained_here_sends_no_run(run):
    save_with_card(load_adapter(adapter()), run)
    assert not {METRICS_FILE, SETTINGS_FILE} & packed(run).contents.keys()


@pytest.mark.parametrize("text", ["- 3", "model: [", "5", "", "model: 5"])
def test_damaged_options_are_not_published(run, text):
    (run / SETTINGS_FILE).write_text(text)
    with pytest.raises(ValueError, match=rf"{SETTINGS_FILE} is damaged \(.*\); expected the options of a run"):
        published_run(run)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(os.path.relpath(path))


ODD = {
    "link": (lambda path: path.symlink_to("/etc/passwd"), "is a symbolic link"),
    "link to a sibling": (lambda path: path.symlink_to("notes.txt"), "is a symbolic link"),
    "broken link": (lambda path: path.symlink_to("nowhere"), "is a symbolic link"),
    "link to a folder": (lambda path: path.symlink_to("/etc"), "is a symbolic link"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "is a symbolic link"),
    "pipe": (os.mkfifo, "is a named pipe"),
    "socket": (bind, "is a socket"),
    "folder": (Path.mkdir, "is a folder"),
}
READ = (CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, TORCH_FILE, RESULTS_FILE, METRICS_FILE, SETTINGS_FILE, CURVES_FILE)


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kind", ODD)
def test_only_files_of_the_folder_itself_are_read(run, name, kind, monkeypatch):
    monkeypatch.chdir(run)
    (run / "notes.txt").write_text("secret")
    (run / name).unlink(missing_ok=True)
    make, words = ODD[kind]
    make(run / name)
    opened = []
    monkeypatch.setattr("mlx_deltamem.adapters.publish.load_with_card", opened.append)
    with pytest.raises(ValueError, match=f"{name} {words}"):
        packed(run)
    assert opened == []


@pytest.mark.parametrize("kind", ODD)
def test_a_picture_is_a_file_of_the_folder_itself(folder, kind, monkeypatch):
    monkeypatch.chdir(folder)
    make, words = ODD[kind]
    (folder / "plots").mkdir()
    make(folder / "plots" / "x.png")
    (folder / CARD_FILE).write_text((folder / CARD_FILE).read_text() + "![x](plots/x.png)")
    with pytest.raises(ValueError, match=f"x.png {words}"):
        packed(folder)


def test_a_picture_in_a_linked_folder_is_refused(folder):
    (folder.parent / "outside").mkdir()
    (folder.parent / "outside" / "x.png").write_bytes(b"secret")
    (folder / "plots").symlink_to("../outside")
    (folder / CARD_FILE).write_text((folder / CARD_FILE).read_text() + "![x](plots/x.png)")
    with pytest.raises(ValueError, match=r"plots/x\.png is a symbolic link or lies behind one"):
        packed(folder)


def test_links_and_pipes_that_are_not_read_are_left_out(folder):
    (folder / "secret").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    assert packed(folder).left_out == ["pipe", "secret"]


@pytest.mark.parametrize("name", READ)
def test_a_file_that_is_too_large_is_refused_by_its_size(run, name):
    with (run / name).open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=rf"{name} is too large \(1,099,511,627,776 bytes, [0-9,]+ at most\)"):
        packed(run)


def test_a_file_that_changes_while_it_is_read_is_refused(folder, monkeypatch):
    def changing(place: Path):
        (place / METRICS_FILE).symlink_to("/etc/passwd")
        return load_with_card(place)

    monkeypatch.setattr("mlx_deltamem.adapters.publish.load_with_card", changing)
    with pytest.raises(ValueError, match=f"{METRICS_FILE} is a symbolic link"):
        packed(folder)
    (folder / METRICS_FILE).unlink()

    def touching(place: Path):
        (place / CONFIG_FILE).write_text((place / CONFIG_FILE).read_text() + "\n")
        return load_with_card(place)

    monkeypatch.setattr("mlx_deltamem.adapters.publish.load_with_card", touching)
    with pytest.raises(ValueError, match="was changed while its files were read"):
        packed(folder)


def test_the_card_of_a_linked_file_is_not_written_back(folder):
    parcel = packed(folder)
    (folder.parent / "elsewhere").write_bytes((folder / CARD_FILE).read_bytes())
    (folder / CARD_FILE).unlink()
    (folder / CARD_FILE).symlink_to("../elsewhere")
    _keep_card(parcel)
    assert (folder / CARD_FILE).is_symlink()


@pytest.mark.slow
@pytest.mark.parametrize("text", ["[" * 5000, "model: &a [*a]", "model: " + "9" * 5000, "model: {a: 1}", "? [1]\n: 2"])
def test_options_that_nobody_wrote_are_not_published(run, text):
    (run / SETTINGS_FILE).write_text(text)
    with pytest.raises(ValueError, match=rf"{SETTINGS_FILE} is damaged \(.*\); expected the options of a run") as error:
        published_run(run)
    assert len(str(error.value)) < 600
