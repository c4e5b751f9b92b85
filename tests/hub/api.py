"""The answers of the loopback Hub at each address that huggingface_hub 2.4.0 uses without hf_xet."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass

from tests.hub import card as hub_card
from tests.hub.http import Call, RefusedError, Reply, Routes, content_reply, json_reply, refused
from tests.hub.repository import File, Repository, described, git_object_id, listed
from tests.hub.storage import Storage

route = Routes()
LFS_SUFFIXES = (".safetensors", ".npz", ".pt", ".bin", ".png", ".gguf")
NAME, REVISION = "([^/]+(?:/[^/]+)?)", "([^/]+)"
KIND = "(models|datasets)"


@dataclass(frozen=True)
class User:
    name: str
    may_write: bool = True


class Api:
    """The repositories by kind and name, and the answers about them. The server sets `endpoint` when it has a port."""

    def __init__(self, tokens: Mapping[str, User], storage: Storage, lfs_above: int) -> None:
        self.endpoint = ""
        self.tokens, self.storage, self.lfs_above = tokens, storage, lfs_above
        self.repositories: dict[tuple[str, str], Repository] = {}

    def user(self, call: Call) -> User | None:
        authorization = call.headers.get("Authorization")
        if authorization is None:
            return None
        user = self.tokens.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return user

    def readable(self, call: Call, kind: str, name: str) -> Repository:
        """Return a repository. Without the right to see it, the answer is the same as if it did not exist."""
        user = self.user(call)
        repository = self.repositories.get((kind, name))
        if repository is None or (repository.private and (user is None or user.name != repository.owner)):
            if user is None:
                raise RefusedError(401, "Invalid username or password.", "RepoNotFound")
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, call: Call, kind: str, name: str) -> Repository:
        repository, user = self.readable(call, kind, name), self.user(call)
        if user is None:
            raise RefusedError(401, "Invalid username or password.", "RepoNotFound")
        if user.name != repository.owner or not user.may_write:
            raise RefusedError(403, "Authorization error.")
        return repository

    def is_large(self, path: str, size: int, sample: bytes) -> bool:
        """Return True if a file belongs into the storage: by its name, its size or its first bytes."""
        return path.endswith(LFS_SUFFIXES) or size > self.lfs_above or b"\0" in sample

    def file(self, path: str, content: bytes) -> File:
        """Make the file of a path, and put it into the storage if it is large."""
        file = File(content, lfs=self.is_large(path, len(content), content))
        if file.lfs:
            self.storage.put(file.sha256, content)
        return file

    @route("GET /api/whoami-v2")
    def whoami(self, call: Call) -> Reply:
        user = self.user(call)
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        token = {"displayName": "loopback", "role": "write" if user.may_write else "read"}
        auth = {"type": "access_token", "accessToken": token}
        return json_reply({"type": "user", "name": user.name, "fullname": user.name, "orgs": [], "auth": auth})

    @route("POST /api/repos/create")
    def create(self, call: Call) -> Reply:
        user, wanted = self.user(call), call.json()
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        kind, namespace = wanted.get("type", "model") + "s", wanted["organization"] or user.name
        if namespace != user.name or not user.may_write:
            raise RefusedError(
                403, f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{namespace}"'
            )
        name = f"{namespace}/{wanted['name']}"
        url = {"url": f"{self.endpoint}/{'' if kind == 'models' else kind + '/'}{name}", "name": name}
        if (kind, name) in self.repositories:
            return json_reply({"error": f"You already created this {kind[:-1]} repo: {name}", **url}, 409)
        self.repositories[kind, name] = Repository(kind, name, private=wanted.get("visibility") == "private")
        return json_reply(url)

    @route(f"GET /api/{KIND}/{NAME}(?:/revision/{REVISION})?")
    def info(self, call: Call, kind: str, name: str, revision: str | None) -> Reply:
        repository = self.readable(call, kind, name)
        content = described(repository, repository.at(revision or "main"), blobs="blobs" in call.query)
        wanted = {"id", *call.query.get("expand", content)}
        return json_reply({key: value for key, value in content.items() if key in wanted})

    @route(f"GET /api/{KIND}/{NAME}/tree/{REVISION}(?:/(.+))?")
    def tree(self, call: Call, kind: str, name: str, revision: str, folder: str | None) -> Reply:
        """List a folder of a revision: all files below it, or only the files and folders directly in it."""
        files, start = self.readable(call, kind, name).at(revision).files, f"{folder}/" if folder else ""
        below = [(path, file) for path, file in sorted(files.items()) if path.startswith(start)]
        if not below:
            raise RefusedError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        flat = call.query.get("recursive") == ["false"]
        inner = [path[len(start) :].partition("/") for path, _ in below if flat]
        folders = sorted({start + first for first, more, _ in inner if more})
        found = [(path, file) for path, file in below if not flat or "/" not in path[len(start) :]]
        entries = [{"type": "directory", "path": path, "oid": git_object_id("tree", path.encode())} for path in folders]
        return json_reply(entries + [{"type": "file", **listed(path, file)} for path, file in found])

    @route(f"GET /api/{KIND}/{NAME}/commits/{REVISION}")
    def commits(self, call: Call, kind: str, name: str, revision: str) -> Reply:
        """List the commits of a revision, the newest first."""
        repository, listed = self.readable(call, kind, name), []
        oids = [repository.at(revision).oid]
        while oids:
            commit = repository.at(oids[0])
            date = commit.date.replace("+00:00", "Z")
            listed.append({"id": commit.oid, "title": commit.title, "message": "", "date": date, "authors": []})
            oids = list(commit.parents)
        return json_reply(listed)

    @route(f"POST /api/{KIND}/{NAME}/(tag|branch)/{REVISION}")
    def name_revision(self, call: Call, kind: str, name: str, what: str, revision: str) -> Reply:
        repository, wanted = self.writable(call, kind, name), call.json()
        tag = what == "tag"
        refs, ref = (repository.tags, wanted["tag"]) if tag else (repository.branches, revision)
        if ref in refs:
            raise RefusedError(409, f"Reference already exists: {ref}")
        refs[ref] = repository.at(revision if tag else wanted.get("startingPoint", "main")).oid
        return json_reply({})

    @route("POST /api/validate-yaml")
    def validate_card(self, call: Call) -> Reply:
        self.user(call)
        errors, warnings = hub_card.problems(call.json()["content"])
        status = 400 if errors else 200
        if "text/plain" in call.headers.get("Accept", ""):
            lines = [f"- Error: {text}" for text in errors] + [f"- Warning: {text}" for text in warnings]
            return Reply(status, "\n".join(lines).encode(), {"Content-Type": "text/plain; charset=utf-8"})
        content = {"errors": [{"message": m} for m in errors], "warnings": [{"message": m} for m in warnings]}
        return json_reply(content | ({"error": errors[0]} if errors else {}), status)

    @route(f"POST /api/{KIND}/{NAME}/preupload/{REVISION}")
    def preupload(self, call: Call, kind: str, name: str, revision: str) -> Reply:
        files = self.writable(call, kind, name).at(revision).files
        modes = []
        for wanted in call.json()["files"]:
            path = wanted["path"]
            large = self.is_large(path, wanted["size"], base64.b64decode(wanted["sample"]))
            known = {"oid": files[path].etag} if path in files else {}
            modes.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **known})
        return json_reply({"files": modes})

    @route(f"POST /(datasets/)?{NAME}.git/info/lfs/objects/batch")
    def lfs_batch(self, call: Call, dataset: str | None, name: str) -> Reply:
        self.writable(call, "datasets" if dataset else "models", name)
        objects = [self.storage.instruct(self.endpoint, o["oid"], o["size"]) for o in call.json()["objects"]]
        return json_reply({"transfer": "multipart", "objects": objects})

    @route("POST /lfs/complete/(.+)")
    def lfs_complete(self, call: Call, upload: str) -> Reply:
        self.storage.complete(upload, {part["partNumber"]: part["etag"] for part in call.json()["parts"]})
        return json_reply({"success": True})

    @route("POST /lfs/verify")
    def lfs_verify(self, call: Call) -> Reply:
        self.user(call)
        self.storage.verify(call.json()["oid"], call.json()["size"])
        return json_reply({"success": True})

    @route(f"POST /api/{KIND}/{NAME}/commit/{REVISION}")
    def commit(self, call: Call, kind: str, name: str, revision: str) -> Reply:
        repository = self.writable(call, kind, name)
        header, *operations = (json.loads(line) for line in call.body.splitlines())
        changes = dict(self.change(operation["key"], operation["value"]) for operation in operations)
        if not repository.at(revision).oid.startswith(header["value"].get("parentCommit", "")):
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        request = repository.open_pull_request(revision) if "create_pr" in call.query else None
        oid = repository.commit(changes, header["value"]["summary"], request or revision).oid
        url = f"{self.endpoint}/{'' if kind == 'models' else kind + '/'}{name}"
        pull_request = {"pullRequestUrl": f"{url}/discussions/{request.split('/')[-1]}"} if request else {}
        return json_reply({"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}", **pull_request})

    def change(self, operation: str, value: Mapping[str, str]) -> tuple[str, File | None]:
        """Return the path that a line of a commit changes, and its new file; None if the line deletes it."""
        path = value["path"]
        if operation == "deletedFile":
            return path, None
        if operation == "lfsFile":
            content = self.storage.objects.get(value["oid"])
            if content is None or len(content) != value["size"]:
                raise RefusedError(400, f"An LFS pointer pointed to a file that does not exist. Offending file: {path}")
            return path, File(content, lfs=True)
        if operation != "file":
            raise RefusedError(400, f"The loopback Hub knows no operation {operation}")
        content = base64.b64decode(value["content"])
        errors, _ = hub_card.problems(content.decode()) if path == "README.md" else ([], [])
        if errors:
            raise RefusedError(400, f"Invalid metadata in README.md: {errors[0]}")
        return path, File(content)

    @route(f"(?:GET|HEAD) /(datasets/)?{NAME}/resolve/{REVISION}/(.+)")
    def resolve(self, call: Call, dataset: str | None, name: str, revision: str, path: str) -> Reply:
        repository, user = self.readable(call, "datasets" if dataset else "models", name), self.user(call)
        if repository.gated and (user is None or user.name != repository.owner):
            hint = f"Access to model {name} is restricted and you are not in the authorized list."
            raise RefusedError(401 if user is None else 403, hint, "GatedRepo")
        commit = repository.at(revision)
        headers = {"X-Repo-Commit": commit.oid}
        file = commit.files.get(path)
        if file is None:
            return refused(RefusedError(404, "Entry not found", "EntryNotFound"), headers)
        headers["ETag"] = f'"{file.etag}"'
        if not file.lfs:
            return content_reply(file.content, headers, call.headers.get("Range"))
        headers |= {"X-Linked-Size": str(len(file.content)), "X-Linked-Etag": f'"{file.etag}"'}
        return Reply(302, b"", {**headers, "Location": f"{self.storage.endpoint}/objects/{file.sha256}"})
