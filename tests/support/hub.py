"""A model hub on loopback: the calls that huggingface_hub makes to publish a model and to read it.

It keeps repositories in memory, takes large files by LFS (in one part or in several), answers what
the real one answers to these calls, and breaks connections on request.
"""

import base64
import hashlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopback"
# By its name; the real hub looks at .gitattributes and at the first bytes.
LARGE = (".safetensors", ".gguf", ".bin", ".model")


@dataclass
class Repository:
    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])

    def commit_id(self, index: int) -> str:
        return hashlib.sha1(f"{id(self)} {index}".encode(), usedforsecurity=False).hexdigest()

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        for index in range(len(self.commits) - 1, -1, -1):
            commit = self.commit_id(index)
            if revision == commit or (revision == "main" and index == len(self.commits) - 1):
                return commit, self.commits[index]
        return None


@dataclass
class Hub:
    """The hub's state.

    Attributes:
        repositories: by OWNER/NAME.
        stored: large files that were sent, by their SHA-256.
        calls: how often each kind of call was made.
        breaks: kind of call -> how many of the next ones lose their connection half way.
        alters: name -> content that is handed out instead of what was sent.
        part_bytes: large files above this are sent in parts; None means never.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    breaks: Counter[str] = field(default_factory=Counter)
    alters: dict[str, bytes] = field(default_factory=dict)
    part_bytes: int | None = None
    address: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, files: dict[str, bytes], *, private: bool = False) -> Repository:
        """Makes a repository with files."""
        self.repositories[name] = Repository(private, [files])
        return self.repositories[name]

    @property
    def elsewhere(self) -> str:
        """Where large files are downloaded from: another host, as the client requires."""
        return self.address.replace("127.0.0.1", "localhost")

    def environment(self) -> dict[str, str]:
        """The variables of a process that uses this hub."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
        }


@contextmanager
def serving() -> Iterator[Hub]:
    """Yields a hub that listens on loopback."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Broken(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PUT = do_HEAD = do_GET

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        with suppress(_Broken, ConnectionError):
            if not path.startswith("cdn/") and not self._may(path):
                return self._json(401, {"error": "Invalid username or password."})
            parts = path.split("/")
            if path == "api/repos/create":
                return self._create()
            if path == "api/validate-yaml":
                self._body()
                return self._json(200, {"errors": [], "warnings": []})
            if parts[0] == "cdn":
                return self._large(parts)
            if path.endswith(".git/info/lfs/objects/batch"):
                return self._batch()
            if parts[:2] == ["api", "models"]:
                return self._api("/".join(parts[2:4]), parts[4:])
            if len(parts) > 4 and parts[2] == "resolve":
                return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            return self._json(404, {"error": f"nothing at {path}"})

    def _may(self, path: str) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        parts = path.removeprefix("api/models/").split("/")
        repository = self.hub.repositories.get("/".join(parts[:2]))
        reads = self.command in ("GET", "HEAD")
        return reads and repository is not None and not repository.private

    def _body(self, kind: str = "") -> bytes:
        """Returns the request's body; loses the connection half way if that is due."""
        with self.hub.lock:
            self.hub.calls[kind] += 1
            is_due = self.hub.breaks[kind] > 0
            self.hub.breaks[kind] -= is_due
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length // 2 if is_due else length)
        if is_due:
            self._lose()
        return body

    def _lose(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        raise _Broken

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], kind: str = "") -> None:
        with self.hub.lock:
            self.hub.calls[kind] += 1
            is_due = kind != "" and self.hub.breaks[kind] > 0
            self.hub.breaks[kind] -= is_due
        asked = self.headers.get("Range", "")
        if status == 200 and asked.startswith("bytes="):
            first = int(asked.removeprefix("bytes=").partition("-")[0])
            headers |= {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}
            status, body = 206, body[first:]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if is_due else body)
        if is_due:
            self._lose()

    def _create(self) -> None:
        asked = json.loads(self._body("create"))
        name = f"{asked['organization']}/{asked['name']}"
        answer = {"url": f"{self.hub.address}/{name}", "name": name}
        if asked["organization"] == "forbidden":
            why = "You don't have the rights to create a model under this namespace"
            return self._send(403, b"{}", {"X-Error-Message": why})
        if name in self.hub.repositories:
            return self._json(409, {"error": "You already created this model repo", **answer})
        self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        return self._json(200, answer)

    def _api(self, name: str, rest: list[str]) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._body()
            body = b'{"error": "Repository not found"}'
            return self._send(404, body, {"X-Error-Code": "RepoNotFound"})
        if rest[:1] == ["preupload"]:
            files = [self._mode(repository, one) for one in json.loads(self._body())["files"]]
            return self._json(200, {"files": files})
        if rest[:1] == ["commit"]:
            return self._commit(name, repository)
        found = repository.at(rest[1] if len(rest) > 1 else "main")
        if found is None:
            body = b'{"error": "Invalid rev id"}'
            return self._send(404, body, {"X-Error-Code": "RevisionNotFound"})
        if rest[:1] == ["tree"]:
            return self._json(200, [_entry(*item) for item in sorted(found[1].items())])
        siblings = [{"rfilename": one} for one in sorted(found[1])]
        facts = {"id": name, "modelId": name, "private": repository.private, "sha": found[0]}
        return self._json(200, {**facts, "siblings": siblings, "tags": []})

    def _mode(self, repository: Repository, asked: dict[str, Any]) -> dict[str, Any]:
        path = asked["path"]
        known = {} if path not in repository.files else {"oid": _oid(path, repository.files[path])}
        mode = "lfs" if path.endswith(LARGE) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, **known}

    def _batch(self) -> None:
        objects = []
        for one in json.loads(self._body("batch"))["objects"]:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.stored:
                home = f"{self.hub.address}/cdn/{one['oid']}"
                upload: dict[str, Any] = {"href": home}
                size = self.hub.part_bytes
                if size is not None and one["size"] > size:
                    count = -(-one["size"] // size)
                    urls = {str(part): f"{home}/{part}" for part in range(1, count + 1)}
                    upload = {"href": f"{home}/whole", "header": {"chunk_size": str(size), **urls}}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{home}/verify"}}
            objects.append(answer)
        self._json(200, {"transfer": "basic", "objects": objects})

    def _large(self, parts: list[str]) -> None:
        oid, what = parts[1], parts[2] if len(parts) > 2 else ""
        if self.command in ("GET", "HEAD"):
            body = self.hub.stored[oid] if what == "" else self.hub.alters[what]
            return self._send(200, body, {}, "download")
        body = self._body("upload" if self.command == "PUT" else "verify")
        if self.command == "PUT" and what:
            self.hub.parts.setdefault(oid, {})[int(what)] = body
            return self._send(200, b"", {"ETag": f'"{what}"'})
        if what == "whole":
            body = b"".join(content for _, content in sorted(self.hub.parts.pop(oid).items()))
        if what == "verify":
            is_there = oid in self.hub.stored
            return self._json(200 if is_there else 404, {})
        if hashlib.sha256(body).hexdigest() != oid:
            return self._json(400, {"error": "the content does not have its hash"})
        self.hub.stored[oid] = body
        return self._json(200, {})

    def _commit(self, name: str, repository: Repository) -> None:
        files = dict(repository.files)
        for line in self._body("commit").splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.stored:
                    return self._json(400, {"error": f"no content of {value['path']}"})
                files[value["path"]] = self.hub.stored[value["oid"]]
        files.setdefault(".gitattributes", b"*.safetensors filter=lfs\n")
        repository.commits.append(files)
        commit = repository.commit_id(len(repository.commits) - 1)
        url = f"{self.hub.address}/{name}/commit/{commit}"
        return self._json(200, {"success": True, "commitUrl": url, "commitOid": commit})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.hub.repositories.get(name)
        found = None if repository is None else repository.at(revision)
        if found is None or path not in found[1]:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        commit, files = found
        content = self.hub.alters.get(path, files[path])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_oid(path, files[path])}"'}
        if not path.endswith(LARGE):
            return self._send(200, content, headers, "download")
        oid = hashlib.sha256(files[path]).hexdigest()
        where = f"/cdn/{oid}" + (f"/{path}" if path in self.hub.alters else "")
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        return self._send(302, b"", {**headers, "Location": self.hub.elsewhere + where})


def _oid(path: str, content: bytes) -> str:
    """Returns what identifies a file's content: for small files, that of git."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    whole = b"blob %d\0" % len(content) + content
    return hashlib.sha1(whole, usedforsecurity=False).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(path, content)}
    if path.endswith(LARGE):
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
    return entry
