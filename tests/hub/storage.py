"""The storage of the loopback Hub: large files by their sha256. For the real Hub, this is a bucket and a CDN."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.hub.http import Call, RefusedError, Reply, Routes, content_reply

route = Routes()


@dataclass
class Upload:
    """A file that is sent in numbered parts of `part_size` bytes. The last part may be smaller."""

    oid: str
    size: int
    part_size: int
    parts: dict[int, bytes] = field(default_factory=dict)

    @property
    def numbers(self) -> range:
        return range(1, math.ceil(self.size / self.part_size) + 1)

    def take(self, number: int, content: bytes) -> str:
        """Keep a part and return its ETag. The client sends the ETags when it completes the upload."""
        if len(content) != min(self.part_size, self.size - (number - 1) * self.part_size):
            raise RefusedError(400, f"Part {number} has {len(content)} bytes")
        self.parts[number] = content
        return etag(content)


class Storage:
    """Large files by sha256, and the uploads in progress. The server sets `endpoint` when it has a port."""

    def __init__(self, multipart_above: int, part_size: int) -> None:
        self.endpoint = ""
        self.multipart_above, self.part_size = multipart_above, part_size
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, Upload] = {}

    def instruct(self, hub: str, oid: str, size: int) -> dict[str, object]:
        """Say how to send a file: to one address, or to one address for each part. A stored file is not sent again.

        Returns:
            An entry of the answer of the LFS batch API. See
            https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md, and for parts lfs.py of huggingface_hub.
        """
        if oid in self.objects:
            return {"oid": oid, "size": size}
        upload: dict[str, object] = {"href": f"{self.endpoint}/objects/{oid}"}
        if size > self.multipart_above:
            name = str(len(self.uploads) + 1)
            self.uploads[name] = Upload(oid, size, self.part_size)
            addresses = {str(n): f"{self.endpoint}/uploads/{name}/{n}" for n in self.uploads[name].numbers}
            header = {"chunk_size": str(self.part_size)} | addresses
            upload = {"href": f"{hub}/lfs/complete/{name}", "header": header}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": {"href": f"{hub}/lfs/verify"}}}

    @route("GET /objects/(.+)")
    def download(self, call: Call, oid: str) -> Reply:
        _refuse_tokens(call)
        if oid not in self.objects:
            raise RefusedError(404, "NoSuchKey")
        return content_reply(self.objects[oid], {"ETag": f'"{oid}"'}, call.headers.get("Range"))

    @route("PUT /objects/(.+)")
    def upload(self, call: Call, oid: str) -> Reply:
        _refuse_tokens(call)
        self.put(oid, call.body)
        return Reply()

    @route("PUT /uploads/(.+)/(.+)")
    def upload_part(self, call: Call, name: str, number: str) -> Reply:
        _refuse_tokens(call)
        return Reply(headers={"ETag": self.uploads[name].take(int(number), call.body)})

    def put(self, oid: str, content: bytes) -> None:
        """Store a file.

        Raises:
            RefusedError: The content has another sha256 than announced.
        """
        if hashlib.sha256(content).hexdigest() != oid:
            raise RefusedError(400, "The sha256 of the content is not the one that was announced")
        self.objects[oid] = content

    def complete(self, name: str, etags: Mapping[int, str]) -> None:
        """Join the parts of an upload to a file.

        Raises:
            RefusedError: A part is missing, or has another ETag.
        """
        upload = self.uploads[name]
        if etags != {number: etag(content) for number, content in upload.parts.items()}:
            raise RefusedError(400, "The ETags are not those of the parts")
        if set(upload.parts) != set(upload.numbers):
            raise RefusedError(400, "A part is missing")
        self.put(upload.oid, b"".join(upload.parts[number] for number in upload.numbers))

    def verify(self, oid: str, size: int) -> None:
        """Check that a file is stored.

        Raises:
            RefusedError: It is not stored, or it has another size.
        """
        if oid not in self.objects or len(self.objects[oid]) != size:
            raise RefusedError(404, f"There is no object {oid} of {size} bytes")


def _refuse_tokens(call: Call) -> None:
    """Refuse a token. The addresses of a bucket are signed; a token that arrives here was sent to a third party."""
    if "Authorization" in call.headers:
        raise RefusedError(400, "Only one auth mechanism allowed")


def etag(part: bytes) -> str:
    return f'"{hashlib.md5(part).hexdigest()}"'
