"""A stand-in of the Hub's HTTP interface on 127.0.0.1: as much of it as `huggingface_hub` calls for models."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_the_test"
LARGE = ".safetensors"  # these are LFS objects, as the Hub's `.gitattributes` has it


@dataclass
class Repository:
    """Files by name, and which of them are LFS objects."""

    private: bool = False
    gated: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)

    @property
    def commit(self) -> str:
        told = [(name, hashlib.sha256(content).hexdigest()) for name, content in sorted(self.files.items())]
        return hashlib.sha1(str(told).encode()).hexdigest()

    def put(self, name: str, content: bytes) -> None:
        self.files[name] = content
        if name.endswith(LARGE):
            self.large.add(name)


@dataclass
class Hub:
    """The state of the stand-in, which tests set and read."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    cut_off: bool = False  # downloads of LFS objects break off in the middle
    down: bool = False  # everything is answered with 503


def etag(content: bytes, large: bool) -> str:
    if large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_GET(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.body()
        self.hub.requests.append(f"{method} {path}")
        if self.hub.down:
            return self.send(503, {"error": "down"})
        for pattern, handle in ROUTES.items():
            if found := re.fullmatch(pattern, f"{method} {path}"):
                return handle(self, body, *found.groups())
        self.hub.unknown.append(f"{method} {path}")
        return self.send(501, {"error": "the stand-in does not know this"})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def send(self, code: int, content: Any = b"", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        headers.setdefault("Content_Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name: str) -> Repository | None:
        """The repository, if whoever asks may see it; if not, it is answered as the Hub does."""
        found = self.hub.repositories.get(name)
        if found is not None and found.gated:
            self.send(403, {"error": "gated"}, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
            return None
        if found is not None and (not found.private or self.has_token):
            return found
        error = {"X_Error_Code": "RepoNotFound", "X_Error_Message": "Repository not found"}
        self.send(404 if self.has_token else 401, {"error": "Repository not found"}, **error)
        return None

    def nothing(self, body: bytes) -> None:
        self.send(404, {})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        if not self.has_token:
            return self.send(401, {"error": "Invalid username or password."})
        name = f"{asked['organization']}/{asked['name']}"
        code = 409 if name in self.hub.repositories else 200
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories.setdefault(name, Repository(private))
        return self.send(code, {"url": f"{self.hub.address}/{name}"})

    def validate(self, body: bytes) -> None:
        """A part of the Hub's own checks of a front matter."""
        text = json.loads(body)["content"]
        data = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
        errors = []
        if data.get("license") not in (None, "apache-2.0", "mit", "cc-by-4.0", "other"):
            errors.append({"message": '"license" must be one of the list'})
        if not re.fullmatch(r"[a-z0-9.-]+", data.get("license_name", "a")):
            errors.append({"message": '"license_name" is not lower case'})
        if data.get("pipeline_tag") not in ("mask-generation", "image-segmentation"):
            errors.append({"message": '"pipeline_tag" is none'})
        self.send(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, body: bytes, name: str) -> None:
        if (repository := self.repository(name)) is None:
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                **self.known(repository, file["path"]),
            }
            for file in json.loads(body)["files"]
        ]
        self.send(200, {"files": files})

    def known(self, repository: Repository, path: str) -> dict[str, str]:
        content = repository.files.get(path)
        return {} if content is None else {"oid": etag(content, path in repository.large)}

    def lfs_batch(self, body: bytes, name: str) -> None:
        if self.repository(name) is None:
            return
        objects: list[dict[str, Any]] = []
        for each in json.loads(body)["objects"]:
            actions = {
                action: {"href": f"{self.hub.address}/objects/{each['oid']}{suffix}", "header": {}}
                for action, suffix in (("upload", ""), ("verify", "/verify"))
            }
            objects.append(each if each["oid"] in self.hub.objects else {**each, "actions": actions})
        self.send(200, {"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, digest: str) -> None:
        if hashlib.sha256(body).hexdigest() != digest:
            return self.send(400, {"error": "another file"})
        self.hub.objects[digest] = body
        return self.send(200)

    def verify(self, body: bytes, digest: str) -> None:
        is_there = len(self.hub.objects.get(digest, b"")) == json.loads(body)["size"]
        self.send(200 if is_there else 404, {})

    def commit(self, body: bytes, name: str) -> None:
        if (repository := self.repository(name)) is None:
            return
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repository.put(value["path"], base64.b64decode(value["content"]))
            elif entry["key"] == "lfsFile":
                repository.put(value["path"], self.hub.objects[value["oid"]])
        commit = repository.commit
        self.send(200, {"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit})

    def info(self, body: bytes, name: str) -> None:
        if (repository := self.repository(name)) is not None:
            siblings = [{"rfilename": file} for file in repository.files]
            self.send(200, {"id": name, "sha": repository.commit, "private": repository.private, "siblings": siblings})

    def tree(self, body: bytes, name: str) -> None:
        if (repository := self.repository(name)) is None:
            return
        entries = []
        for path, content in repository.files.items():
            lfs = {"oid": etag(content, True), "size": len(content), "pointerSize": 130}
            entry = {"type": "file", "path": path, "size": len(content), "oid": etag(content, False)}
            entries.append(entry | ({"lfs": lfs} if path in repository.large else {}))
        self.send(200, entries)

    def resolve(self, body: bytes, name: str, path: str) -> None:
        if (repository := self.repository(name)) is None:
            return None
        content = repository.files.get(path)
        if content is None:
            return self.send(404, {"error": "no such file"}, X_Error_Code="EntryNotFound")
        tag, headers = etag(content, path in repository.large), {"X_Repo_Commit": repository.commit}
        if path in repository.large:
            self.hub.objects[tag] = content
            linked = {"X_Linked_ETag": f'"{tag}"', "X_Linked_Size": str(len(content))}
            # To another host, as the Hub does: its own headers are those of this answer.
            elsewhere = self.hub.address.replace("127.0.0.1", "localhost")
            return self.send(302, Location=f"{elsewhere}/objects/{tag}", **headers, **linked)
        return self.send(200, content, ETag=f'"{tag}"', **headers)

    def download(self, body: bytes, digest: str) -> None:
        content = self.hub.objects[digest]
        first = int((self.headers.get("Range") or "bytes=0-").partition("=")[2].partition("-")[0])
        part, code = content[first:], 206 if first else 200
        size = {"Content_Length": str(len(part)), "Content_Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
        if self.hub.cut_off:
            self.close_connection = True
            part = part[: len(part) // 2]
        self.send(code, part, ETag=f'"{digest}"', Accept_Ranges="bytes", **size)


_NAME = r"([^/]+/[^/]+)"
ROUTES = {
    r"POST /api/repos/create": Answers.create,
    r"POST /api/validate-yaml": Answers.validate,
    rf"POST /api/models/{_NAME}/preupload/main": Answers.preupload,
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": Answers.lfs_batch,
    r"PUT /objects/([0-9a-f]{64})": Answers.upload,
    r"POST /objects/([0-9a-f]{64})/verify": Answers.verify,
    rf"POST /api/models/{_NAME}/commit/main": Answers.commit,
    rf"GET /api/models/{_NAME}(?:/revision/[^/]+)?": Answers.info,
    rf"GET /api/models/{_NAME}/tree/[^/]+": Answers.tree,
    rf"(?:HEAD|GET) /{_NAME}/resolve/[^/]+/(.+)": Answers.resolve,
    r"(?:HEAD|GET) /objects/([0-9a-f]{64})": Answers.download,
    r"GET /api/agent-harnesses": Answers.nothing,  # names of programs that the client may run in
}


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A stand-in that answers until the end of this."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Answers,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
