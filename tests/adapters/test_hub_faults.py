"""The faults of the loopback Hub, as huggingface_hub meets them."""

from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError

from tests.adapters.test_hub_server import FEW, FILES, REPO, upload
from tests.hub import fixture as hub_fixture
from tests.hub.faults import ALWAYS

hub = hub_fixture.hub


@pytest.mark.parametrize("path", ["config.json", "small.safetensors"])
def test_a_cut_download_is_resumed(hub, monkeypatch, path):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1)  # a smaller chunk that is cut is asked for again
    files = {"config.json": b"[1, 2]", "small.safetensors": FILES["small.safetensors"]}
    hub.create(REPO, files)
    hub.fail("GET .*(config.json|/objects/)", cut=True, times=2)
    assert Path(hf_hub_download(REPO, path)).read_bytes() == files[path]
    assert hub.slept == [1, 1]
    downloads = [request.range for request in hub.requests if request.method == "GET"]
    half = len(files[path]) // 2
    assert downloads == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]


UPLOAD_STEPS = ("POST /api/validate-yaml", "/preupload/", "/lfs/objects/batch", "PUT /objects/", "POST .*/commit/")
STATUSES = {
    401: HfHubHTTPError,
    403: HfHubHTTPError,
    404: RepositoryNotFoundError,
    429: HfHubHTTPError,
    503: HfHubHTTPError,
}


@pytest.mark.slow
@pytest.mark.parametrize("step", UPLOAD_STEPS)
@pytest.mark.parametrize(
    "fault", [*({"status": status} for status in STATUSES), {"cut": True}, {"reset": True}], ids=str
)
def test_every_fault_stops_an_upload_and_a_second_one_succeeds(hub, step, fault):
    hub.create(REPO)
    hub.fail(step, times=ALWAYS, **fault)
    with pytest.raises(RuntimeError if "PUT" in step else HTTPError) as caught:
        upload(FEW)
    error = caught.value.__cause__ if "PUT" in step else caught.value
    if "status" in fault:
        expected = HfHubHTTPError if "PUT" in step else STATUSES[fault["status"]]
        assert (type(error), error.response.status_code) == (expected, fault["status"])
    else:
        assert isinstance(error, HTTPError)
        assert not isinstance(error, HfHubHTTPError)
    assert hub.repository(REPO).files.keys() == {".gitattributes"}
    hub.faults.clear()
    commit = upload(FEW)
    assert hub.repository(REPO).branches["main"] == commit
    assert FEW.items() <= {path: file.content for path, file in hub.repository(REPO).files.items()}.items()


@pytest.mark.parametrize(
    ("fault", "slept"),
    [
        ({"status": 429, "headers": {"Retry-After": "7"}}, 8),
        ({"status": 500}, 1),
        ({"cut": True}, 1),
        ({"reset": True}, 1),
    ],
    ids=str,
)
def test_a_passing_fault_is_outlived(hub, fault, slept):
    hub.create(REPO)
    hub.fail("PUT /uploads/1/2", **fault)
    upload(FILES)
    assert hub.slept == [slept]
    parts = [request for request in hub.requests if request.path == "/uploads/1/2"]
    size = hub.storage.part_size
    assert [request.received for request in parts] == [size // 2 if "status" not in fault else size, size]


def test_a_commit_may_be_made_and_its_answer_lost(hub):
    hub.create(REPO)
    hub.fail("/commit/", answer_lost=True)
    with pytest.raises(HTTPError, match="without sending a response"):
        upload(FEW)
    made = hub.repository(REPO).branches["main"]
    assert upload(FEW) == made
