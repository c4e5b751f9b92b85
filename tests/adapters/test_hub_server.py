"""The loopback Hub is proved with huggingface_hub alone, so that tests of uploads and downloads may trust it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_session,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub import fixture as hub_fixture
from tests.hub.fixture import using
from tests.hub.server import OTHER_TOKEN, READ_TOKEN, TOKEN, Hub

hub = hub_fixture.hub

REPO = "user/model"
CARD = b"""---
license: cc-by-4.0
library_name: mlx
base_model: Qwen/Qwen3-0.6B
base_model_relation: adapter
tags: [delta-mem]
---
# \xce\xb4-mem, arxiv:2605.12357
"""
FILES = {
    "README.md": CARD,
    "config.json": b"{}",
    "empty.txt": b"",
    "small.safetensors": bytes(range(256)) * 4,
    "folder/large.npz": bytes(range(251)) * 5_000,  # more than Hub's multipart_above: three parts
}
FEW = {path: FILES[path] for path in ("README.md", "small.safetensors")}


def upload(files: dict[str, bytes], name: str = REPO, **options) -> str:
    """Commit files; returns the commit's id."""
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return HfApi().create_commit(name, operations, commit_message="Upload", **options).oid


def contents(folder: str) -> dict[str, bytes]:
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name != ".gitattributes"}


def sent(hub: Hub) -> list[str]:
    """The requests since the last look that sent a file or a commit."""
    found = [str(request) for request in hub.requests if request.method == "PUT" or "/commit/" in request.path]
    hub.requests.clear()
    return found


def test_what_was_uploaded_comes_back(hub):
    assert HfApi().create_repo(REPO, private=True).repo_id == REPO
    commit = upload(FILES)
    assert contents(snapshot_download(REPO)) == FILES
    info = HfApi().repo_info(REPO, files_metadata=True)
    assert (info.sha, info.private, info.library_name) == (commit, True, "mlx")
    assert info.card_data.base_model == "Qwen/Qwen3-0.6B"
    assert {"delta-mem", "arxiv:2605.12357", "license:cc-by-4.0", "base_model:adapter:Qwen/Qwen3-0.6B"} < {*info.tags}
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings if sibling.rfilename != ".gitattributes"}
    assert sizes == {path: len(content) for path, content in FILES.items()}
    assert {sibling.rfilename for sibling in info.siblings if sibling.lfs} == {"small.safetensors", "folder/large.npz"}
    assert HfApi().repo_info(REPO, expand=["sha"]).siblings is None
    assert {*HfApi().list_repo_files(REPO)} == {".gitattributes", *FILES}
    assert [request.path for request in hub.requests if request.path.startswith("/uploads/")] == [
        f"/uploads/1/{number}" for number in (1, 2, 3)
    ]
    assert {(request.host, request.token_sent) for request in hub.requests if request.host == "storage"} == {
        ("storage", False)
    }


def test_nothing_is_sent_twice(hub):
    hub.create(REPO)
    hub.fail("POST .*/commit/")
    with pytest.raises(HfHubHTTPError):
        upload(FILES)
    assert len(sent(hub)) == 5
    commit = upload(FILES)
    assert sent(hub) == [f"POST /api/models/{REPO}/commit/main"]
    assert upload(FILES) == commit
    assert sent(hub) == []
    assert upload(FILES | {"config.json": b"[]"}) != commit
    assert sent(hub) == [f"POST /api/models/{REPO}/commit/main"]


def test_every_revision_stays(hub):
    hub.create(REPO)
    first = upload({"a": b"1", "b": b"1"})
    HfApi().create_tag(REPO, tag="v1")
    HfApi().create_branch(REPO, branch="dev")
    delete = CommitOperationDelete("b")
    second = HfApi().create_commit(REPO, [CommitOperationAdd("a", b"2"), delete], commit_message="2").oid
    request = HfApi().create_commit(REPO, [CommitOperationAdd("c", b"3")], commit_message="3", create_pr=True)
    assert request.pr_revision == "refs/pr/1"
    assert hub.repository(REPO).commits[second].parents == (first,)
    both, changed = {"a": b"1", "b": b"1"}, {"a": b"2"}
    expected = {
        first: both,
        "v1": both,
        "dev": both,
        second: changed,
        "main": changed,
        "refs/pr/1": {"a": b"2", "c": b"3"},
    }
    assert {revision: contents(snapshot_download(REPO, revision=revision)) for revision in expected} == expected
    assert HfApi().repo_info(REPO, revision=first[:8]).sha == first
    for revision in ("v2", "0" * 40):
        with pytest.raises(RevisionNotFoundError):
            snapshot_download(REPO, revision=revision)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        upload({"a": b"4"}, parent_commit=first)
    with pytest.raises(RemoteEntryNotFoundError):
        HfApi().create_commit(REPO, [delete], commit_message="again")
    with pytest.raises(HfHubHTTPError, match="already created"):
        HfApi().create_repo(REPO)
    HfApi().create_repo(REPO, exist_ok=True)


@pytest.mark.parametrize(
    ("name", "token", "error", "status"),
    [
        ("user/private", None, RepositoryNotFoundError, 401),
        ("user/private", OTHER_TOKEN, RepositoryNotFoundError, 404),
        ("user/private", READ_TOKEN, None, 200),
        ("user/missing", None, RepositoryNotFoundError, 401),
        ("user/missing", TOKEN, RepositoryNotFoundError, 404),
        ("user/data", TOKEN, RepositoryNotFoundError, 404),
        ("user/gated", None, GatedRepoError, 401),
        ("user/gated", OTHER_TOKEN, GatedRepoError, 403),
        ("user/gated", TOKEN, None, 200),
        ("user/open", "hf_wrong", HfHubHTTPError, 401),
        ("user/open", None, None, 200),
    ],
)
def test_who_may_read(hub, tmp_path, name, token, error, status):
    for kind, options in {"private": {"private": True}, "gated": {"gated": True}, "open": {}}.items():
        hub.create(f"user/{kind}", FILES, **options)
    hub.create("user/data", {"rows.jsonl": b"{}"}, kind="datasets")
    with using(hub, tmp_path / "reader", token=token):
        if error is None:
            assert contents(snapshot_download(name)) == FILES
            return
        with pytest.raises(error) as caught:
            snapshot_download(name)
        assert type(caught.value) is error
        assert caught.value.response.status_code == status


def test_a_dataset_is_known_as_such(hub):
    hub.create("user/data", {"rows.jsonl": b"{}"}, kind="datasets")
    assert HfApi().dataset_info("user/data").sha
    assert contents(snapshot_download("user/data", repo_type="dataset")) == {"rows.jsonl": b"{}"}
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("user/data", "other", repo_type="dataset")


@pytest.mark.parametrize("token", [READ_TOKEN, OTHER_TOKEN, None])
def test_only_the_owner_may_write(hub, tmp_path, token):
    hub.create(REPO)
    with using(hub, tmp_path / "writer", token=token):
        with pytest.raises(HfHubHTTPError) as caught:
            HfApi().create_repo("user/new")
        assert caught.value.response.status_code == (403 if token else 401)
        with pytest.raises(HfHubHTTPError) as caught:
            upload({"a": b""})
        assert caught.value.response.status_code == (403 if token else 401)
    assert sent(hub) == []
    assert HfApi().whoami()["name"] == "user"


def test_offline_there_is_what_was_downloaded(hub, tmp_path):
    hub.create(REPO, FILES)
    folder = snapshot_download(REPO)
    hub.requests.clear()
    with using(hub, tmp_path / "huggingface", offline=True):
        assert snapshot_download(REPO) == folder
        with pytest.raises(OfflineModeIsEnabled):
            HfApi().repo_info(REPO)
    with using(hub, tmp_path / "other", offline=True), pytest.raises(LocalEntryNotFoundError):
        snapshot_download(REPO)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        (b"license: MIT License", '"license" must be one of'),
        (b"base_model: /home/me/model", '"base_model" with value "/home/me/model" is not valid'),
        (b"base_model_relation: child", '"base_model_relation" must be one of'),
        (b"tags: mlx", '"tags" must be an array'),
        (b"library_name: [mlx]", '"library_name" must be a string'),
        (b"license: [", "bad YAML"),
        (b"- license", "must be of type object"),
    ],
)
def test_cards_are_judged(hub, metadata, error):
    hub.create(REPO)
    ModelCard(CARD.decode()).validate()
    broken = b"---\n" + metadata + b"\n---\n# Text\n"
    with pytest.raises(ValueError, match=error):
        upload(FEW | {"README.md": broken})
    assert sent(hub) == []
    if error.startswith('"') and "array" not in error:  # ModelCard makes a list of tags, and holds no broken block
        with pytest.raises(ValueError, match=f"^- Error: {error}"):
            ModelCard(broken.decode()).validate()
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        upload({"README.md": b"# Text\n"})


def test_the_hub_checks_what_it_is_sent(hub):
    hub.create(REPO)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    pointer = '{"key": "lfsFile", "value": {"path": "a.npz", "oid": "%s", "size": 1}}' % ("0" * 64)
    commit = '{"key": "header", "value": {"summary": ""}}\n' + pointer

    def refusal(method: str, url: str, content: str, **headers: str) -> str:
        reply = get_session().request(method, url, content=content, headers=headers)
        assert reply.status_code == 400
        return reply.text

    assert "does not exist" in refusal("POST", f"{hub.endpoint}/api/models/{REPO}/commit/main", commit, **headers)
    assert "sha256" in refusal("PUT", f"{hub.storage.endpoint}/objects/{'0' * 64}", "x")
    assert "Only one auth" in refusal("PUT", f"{hub.storage.endpoint}/objects/{'0' * 64}", "x", **headers)
    hub.storage.instruct(hub.endpoint, "0" * 64, hub.storage.multipart_above + 1)
    assert "bytes" in refusal("PUT", f"{hub.storage.endpoint}/uploads/1/1", "x")
    assert "missing" in refusal("POST", f"{hub.endpoint}/lfs/complete/1", '{"parts": []}')
    with pytest.raises(BadRequestError, match="wrong"):
        hub.fail("/preupload/", 400, headers={"X-Error-Message": "wrong"})
        upload({"a": b"1"})


def test_a_process_of_its_own_uses_it_and_it_ends(tmp_path):
    threads = threading.active_count()
    with Hub() as hub:
        code = "import huggingface_hub as h; print(h.whoami()['name'], h.constants.HF_HUB_CACHE, h.get_token())"
        environment = os.environ | hub.environment(tmp_path)
        output = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert output.stdout.split() == ["user", str(tmp_path / "hub"), TOKEN]
        with using(hub, tmp_path):
            HfApi().whoami()  # a connection that is still open when the Hub ends
            hub.__exit__()
            with pytest.raises(HTTPError):
                HfApi().whoami()
    assert threading.active_count() == threads
