"""A repository of the loopback Hub: files, commits and revisions in memory, with the object ids of git."""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from tests.hub import card as hub_card
from tests.hub.http import RefusedError

ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.npz filter=lfs diff=lfs merge=lfs -text\n"
SHORTEST_COMMIT_ID = 7


@dataclass(frozen=True)
class File:
    """The content of a path at a commit. For a large file (`lfs`), git stores a pointer to the content."""

    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """The bytes that git stores: the content, or for a large file three lines that name it."""
        if not self.lfs:
            return self.content
        spec = "version https://git-lfs.github.com/spec/v1"
        return f"{spec}\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @cached_property
    def blob_id(self) -> str:
        return git_object_id("blob", self.pointer)

    @property
    def etag(self) -> str:
        """The ETag: the sha256 of a large file, the blob id of any other file."""
        return self.sha256 if self.lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    """A commit: all its files by path, and its parents (none for the first commit)."""

    files: Mapping[str, File]
    title: str
    parents: tuple[str, ...]
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    @cached_property
    def oid(self) -> str:
        tree = "".join(f"{path} {file.blob_id}\n" for path, file in sorted(self.files.items()))
        parents = "".join(f"parent {oid}\n" for oid in self.parents)
        return git_object_id("commit", f"{tree}{parents}\n{self.date}\n{self.title}".encode())


class Repository:
    """A model or dataset repository of the loopback Hub.

    `branches` (with `refs/pr/N`) and `tags` map names to commit ids. `commits` has every commit that was made, so that
    an old id can still be read.
    """

    def __init__(self, kind: str, name: str, *, private: bool = False, gated: bool = False) -> None:
        self.kind, self.name, self.private, self.gated = kind, name, private, gated
        first = Commit({".gitattributes": File(ATTRIBUTES)}, "initial commit", ())
        self.commits = {first.oid: first}
        self.branches = {"main": first.oid}
        self.tags: dict[str, str] = {}

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]

    @property
    def files(self) -> Mapping[str, File]:
        """The files of `main`."""
        return self.at("main").files

    def at(self, revision: str) -> Commit:
        """Return the commit of a branch, a tag, a commit id or the beginning of a commit id.

        Raises:
            RefusedError: There is no such revision.
        """
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        found = [commit for commit in self.commits.values() if commit.oid.startswith(oid)]
        if len(oid) < SHORTEST_COMMIT_ID or len(found) != 1:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

    def commit(self, changes: Mapping[str, File | None], title: str, branch: str = "main") -> Commit:
        """Add a commit to a branch. A file of None is deleted.

        Raises:
            RefusedError: There is no such branch, or no such file to delete.
        """
        if branch not in self.branches:
            raise RefusedError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        parent = self.at(branch)
        missing = [path for path, file in changes.items() if file is None and path not in parent.files]
        if missing:
            raise RefusedError(404, f"A file with this name doesn't exist: {missing[0]}", "EntryNotFound")
        files = {path: file for path, file in (dict(parent.files) | dict(changes)).items() if file is not None}
        commit = Commit(files, title, (parent.oid,))
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def open_pull_request(self, base: str) -> str:
        """Start a pull request from a revision, and return its branch, `refs/pr/N`."""
        names = (f"refs/pr/{number}" for number in itertools.count(1))
        branch = next(name for name in names if name not in self.branches)
        self.branches[branch] = self.at(base).oid
        return branch


def described(repository: Repository, commit: Commit, *, blobs: bool) -> dict[str, object]:
    """Describe a repository at a revision as the Hub does. `blobs` adds the sizes and ids of the files."""
    readme = commit.files.get("README.md", File(b"")).content.decode()
    card = hub_card.metadata(readme)
    files = [(path, listed(path, file)) for path, file in sorted(commit.files.items())]
    details = [{"size": f["size"], "blobId": f["oid"], "lfs": f.get("lfs")} if blobs else {} for _, f in files]
    return {
        "id": repository.name,
        "author": repository.owner,
        "sha": commit.oid,
        "lastModified": commit.date.replace("+00:00", "Z"),
        "private": repository.private,
        "gated": "manual" if repository.gated else False,
        "disabled": False,
        "tags": hub_card.tags(readme),
        "downloads": 0,
        "likes": 0,
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "cardData": card or None,
        "siblings": [{"rfilename": path, **more} for (path, _), more in zip(files, details, strict=True)],
    }


def listed(path: str, file: File) -> dict[str, object]:
    """Describe a file as an entry of a list of files."""
    entry: dict[str, object] = {"path": path, "oid": file.blob_id, "size": len(file.content)}
    if file.lfs:
        entry["lfs"] = {
            "oid": file.sha256,
            "sha256": file.sha256,
            "size": len(file.content),
            "pointerSize": len(file.pointer),
        }
    return entry


def git_object_id(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()
