from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from huggingface_hub import ModelCard

from mlx_deltamem import load_adapter
from mlx_deltamem.adapters.card.folder import load_with_card, save_with_card
from mlx_deltamem.adapters.folder import NPZ_FILE, TORCH_FILE
from mlx_deltamem.adapters.hub import find_adapter
from mlx_deltamem.adapters.loading import load_model_type
from mlx_deltamem.adapters.names import REFERENCE_ADAPTER
from mlx_deltamem.core.adapter import CARD_FILE, WEIGHTS_FILE, Adapter
from mlx_deltamem.core.config import CONFIG_FILE
from tests.command_line import assert_refused, run_command
from tests.conftest import adapter, backbone
from tests.hub import fixture as hub_fixture
from tests.hub.faults import ALWAYS
from tests.hub.server import Hub

hub = hub_fixture.hub

REPO = "user/memory"


def contents(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def own_format(tmp_path: Path, name: str = "qwen3_tsw_qo") -> dict[str, bytes]:
    """The files of a golden adapter in our format."""
    save_with_card(load_adapter(adapter(name)), tmp_path / name)
    return contents(tmp_path / name)


def same(a: Adapter, b: Adapter) -> bool:
    equal = all(mx.array_equal(a.weights[name], b.weights[name]) for name in b.weights)
    return a.config == b.config and a.weights.keys() == b.weights.keys() and equal


def test_a_revision_can_be_a_branch_a_tag_a_commit_or_a_pull_request(hub, tmp_path):
    first, second = own_format(tmp_path), own_format(tmp_path, "qwen3_msw4")
    repository = hub.create(REPO, first)
    repository.tags["v1"] = old = repository.branches["main"]
    repository.branches["refs/pr/1"] = old
    hub.commit(REPO, second)
    assert same(load_adapter(REPO), load_adapter(tmp_path / "qwen3_msw4"))
    for revision in ("v1", old, "refs/pr/1"):
        found = load_adapter(f"{REPO}@{revision}")
        assert same(found, load_adapter(tmp_path / "qwen3_tsw_qo"))
        assert found.source == f"{REPO}@{revision}"
        assert found.metadata["source_adapter"] == f"{REPO}@{old}"


def test_a_repo_of_the_reference_is_converted_once_and_serves_offline(hub, tmp_path):
    card = b"---\nbase_model: Qwen/Qwen3-4B-Instruct-2507\n---\n"
    hub.create(REFERENCE_ADAPTER, contents(adapter()) | {CARD_FILE: card})
    commit = hub.repository(REFERENCE_ADAPTER).branches["main"]
    first = load_adapter(REFERENCE_ADAPTER)
    assert (first.file, same(first, load_adapter(adapter()))) == (TORCH_FILE, True)
    with hub_fixture.using(hub, tmp_path / "huggingface", offline=True):
        again = load_with_card(REFERENCE_ADAPTER)
    assert (again.file, same(again, first)) == (WEIGHTS_FILE, True)
    save_with_card(again, tmp_path / "mine")
    text = (tmp_path / "mine" / CARD_FILE).read_text()
    data = ModelCard(text).data.to_dict()
    assert (data["license"], data["base_model"]) == ("cc-by-4.0", "Qwen/Qwen3-4B-Instruct-2507")
    assert data["source_adapter"] == f"{REFERENCE_ADAPTER}@{commit}"
    link = f"[{REFERENCE_ADAPTER}](https://huggingface.co/{REFERENCE_ADAPTER})"
    assert f"Made from {link} at revision `{commit}`, which is under the licence cc-by-4.0." in text


def test_a_link_to_a_downloaded_repo_is_the_revision_that_it_leads_to(hub, tmp_path, monkeypatch):
    link = tmp_path / "current"
    for number, name in enumerate(("qwen3_tsw_qo", "qwen3_msw4")):
        files = contents(adapter(name))
        (hub.commit if number else hub.create)(REPO, files)
        load_adapter(REPO)
        commit = hub.repository(REPO).branches["main"]
        folder = find_adapter(REPO).path
        link.unlink(missing_ok=True)
        link.symlink_to(folder)
        monkeypatch.chdir(folder)
        for path in (link, "."):
            found = load_adapter(path)
            assert same(found, load_adapter(adapter(name)))
            assert found.metadata["source_adapter"] == f"{REPO}@{commit}"


def test_a_repo_of_the_other_port_is_converted(hub, tmp_path):
    weights = {name: np.array(tensor) for name, tensor in load_adapter(adapter()).weights.items()}
    np.savez(tmp_path / NPZ_FILE, **weights)
    config = (Path(adapter()) / CONFIG_FILE).read_bytes()
    hub.create(REPO, {NPZ_FILE: (tmp_path / NPZ_FILE).read_bytes(), CONFIG_FILE: config})
    assert same(load_adapter(REPO), load_adapter(adapter()))
    assert load_adapter(REPO).file == WEIGHTS_FILE


def test_only_the_adapters_files_are_downloaded(hub, tmp_path):
    hub.create(REPO, own_format(tmp_path) | {"model.bin": b"x" * 1000, "setup.py": b"raise SystemExit"})
    load_adapter(REPO)
    downloaded = {request.path.rpartition("/")[2] for request in hub.requests if "/resolve/" in request.path}
    assert downloaded == {CARD_FILE, CONFIG_FILE, WEIGHTS_FILE}


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"config.json": b"{}", "model.safetensors": b"x"}, "it is a model, which goes to --model"),
        ({"adapter_config.json": b"{}", "adapters.safetensors": b"x"}, "it is a LoRA or PEFT adapter"),
        ({"model.gguf": b"x"}, "it holds .gitattributes, model.gguf"),
        ({CONFIG_FILE: b"{}"}, f"it lacks {WEIGHTS_FILE}"),
        ({CARD_FILE: b"# Hello", WEIGHTS_FILE: b"x"}, f"it lacks {CONFIG_FILE}"),
    ],
)
def test_a_repo_that_is_no_adapter_is_named_for_what_it_is(hub, files, kind):
    hub.create(REPO, files)
    with pytest.raises(FileNotFoundError, match=f"{REPO} is not a δ-mem adapter: .*{kind}") as error:
        load_adapter(REPO)
    assert "\n" not in str(error.value)


def test_a_file_that_a_repo_lacks_is_named(hub):
    hub.create(REPO, {"model.gguf": b"GGUF"})
    with pytest.raises(FileNotFoundError, match=rf"^the repo {REPO} on the Hub has no config\.json"):
        load_model_type(REPO)


def test_a_dataset_is_named_for_what_it_is(hub):
    hub.create(REPO, {"data.jsonl": b"{}"}, kind="datasets")
    with pytest.raises(FileNotFoundError, match=f"{REPO} is a dataset on the Hub, not an adapter"):
        load_adapter(REPO)


def test_what_is_not_there_or_not_allowed_is_named(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a repo on the Hub"):
        load_adapter(REPO)
    hub.create(REPO, own_format(tmp_path), gated=True)
    with pytest.raises(FileNotFoundError, match="has no such revision"):
        load_adapter(f"{REPO}@v9")
    with hub_fixture.using(hub, tmp_path / "nobody", token=None), pytest.raises(ValueError, match="is gated"):
        load_adapter(REPO)


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_refusal_is_one_line_and_the_next_try_succeeds(hub, tmp_path, status):
    hub.create(REPO, own_format(tmp_path))
    hub.fail("GET /api/models|/resolve/", status, headers={"Retry-After": "9"}, times=ALWAYS)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_adapter(REPO)
    assert "\n" not in str(error.value)
    assert str(status) in str(error.value)
    hub.faults.clear()
    assert load_adapter(REPO).parameters == 10776


def test_a_download_that_was_cut_off_goes_on(hub, tmp_path):
    files = own_format(tmp_path)
    hub.create(REPO, files)
    hub.fail(f"GET .*{WEIGHTS_FILE}|GET /objects", cut=True, times=ALWAYS)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_adapter(REPO)
    assert "\n" not in str(error.value)
    hub.faults.clear()
    assert same(load_adapter(REPO), load_adapter(tmp_path / "qwen3_tsw_qo"))


def test_without_a_network_it_says_so(hub, tmp_path):
    with hub_fixture.using(hub, tmp_path / "offline", offline=True), pytest.raises(FileNotFoundError) as error:
        load_adapter(REPO)
    assert "not complete in the Hub's cache, and HF_HUB_OFFLINE is set" in str(error.value)
    with Hub() as gone, hub_fixture.using(gone, tmp_path):
        pass
    with hub_fixture.using(gone, tmp_path), pytest.raises(FileNotFoundError, match="the Hub could not be reached"):
        load_adapter(REPO)


@pytest.mark.slow
def test_the_commands_take_a_repo_with_a_revision(hub, tmp_path):
    hub.create(REPO, own_format(tmp_path))
    commit = hub.repository(REPO).branches["main"]
    options = ("generate", "--model", backbone(), "--ignore-chat-template", "--prompt", "t5 t6", "--max-tokens", "2")
    environment = hub.environment(tmp_path / "home")
    result = run_command(*options, "--adapter", f"{REPO}@{commit}", **environment)
    assert result.returncode == 0, result.stderr
    assert_refused(run_command(*options, "--adapter", f"{REPO}@nope", **environment), "has no such revision")
