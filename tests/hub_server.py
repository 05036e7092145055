"""A local server that speaks the part of the Hugging Face Hub's API that models need."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """The content of the server.

    Attributes:
        repositories: name -> revision (commit, "main" or a tag) -> path -> content.
        requests: method and path of all requests.
        private: names of the private repositories.
        url: address of the server.
    """

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    private: set[str] = field(default_factory=set)
    url: str = ""

    def commit(self, name: str, changed: dict[str, bytes], deleted: Collection[str] = ()) -> str:
        """Change files of the main branch, and return the commit."""
        revisions = self.repositories.setdefault(name, {})
        files = {**revisions.get("main", {}), **changed}
        files = {path: content for path, content in files.items() if path not in deleted}
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        revisions[digest] = revisions["main"] = files
        return digest

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return the commit and the files of a revision."""
        revisions = self.repositories.get(name, {})
        if revision not in revisions:
            return None
        files = revisions[revision]
        return next(key for key in revisions if len(key) == 40 and revisions[key] is files), files


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve an empty Hub on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._read()

        def do_HEAD(self) -> None:
            self._read()

        def _read(self) -> None:
            path = self._path()
            parts = path.strip("/").split("/")
            if parts[0] == "api" and parts[1] == "models":
                name, revision = "/".join(parts[2:4]), "/".join(parts[5:6]) or "main"
                revision_files = hub.find(name, revision)
                if revision_files is None:
                    known = name in hub.repositories
                    self._send(404, {}, error="RevisionNotFound" if known else "RepoNotFound")
                elif parts[4:5] == ["tree"]:
                    self._send(200, [
                        {"type": "file", "path": file, "size": len(content),
                         "oid": hashlib.sha1(content).hexdigest()}
                        for file, content in revision_files[1].items()
                    ])  # fmt: skip
                else:
                    siblings = [{"rfilename": file} for file in revision_files[1]]
                    content = {"id": name, "sha": revision_files[0], "siblings": siblings}
                    self._send(200, {**content, "private": name in hub.private})
                return
            if "resolve" in parts:
                at = parts.index("resolve")
                revision_files = hub.find("/".join(parts[:at]), parts[at + 1])
                file = "/".join(parts[at + 2 :])
                if revision_files is not None and file in revision_files[1]:
                    headers = {
                        "ETag": f'"{hashlib.sha1(revision_files[1][file]).hexdigest()}"',
                        "X-Repo-Commit": revision_files[0],
                    }
                    self._send(200, revision_files[1][file], headers)
                    return
            self._send(404, {}, error="EntryNotFound")

        def do_POST(self) -> None:
            path = self._path()
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = path.strip("/").split("/")
            if path == "/api/repos/create":
                data = json.loads(body)
                owner = data.get("organization") or "me"
                name = data["name"] if "/" in data["name"] else f"{owner}/{data['name']}"
                is_new = name not in hub.repositories
                empty: dict[str, bytes] = {}
                hub.repositories.setdefault(name, {"0" * 40: empty, "main": empty})
                is_private = data.get("private") or data.get("visibility") == "private"
                hub.private |= {name} if is_private and is_new else set()
                self._send(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})
            elif path == "/api/validate-yaml":
                self._send(200, {"errors": [], "warnings": []})
            elif "preupload" in parts:
                files = json.loads(body)["files"]
                self._send(200, {"files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in files
                ]})  # fmt: skip
            elif "commit" in parts:
                name = "/".join(parts[2:4])
                lines = [json.loads(line) for line in body.splitlines()]
                files = {
                    line["value"]["path"]: base64.b64decode(line["value"]["content"])
                    for line in lines
                    if line["key"] == "file"
                }
                deleted = [line["value"]["path"] for line in lines if line["key"] == "deletedFile"]
                oid = hub.commit(name, files, deleted)
                url = f"{hub.url}/{name}/commit/{oid}"
                self._send(200, {"commitUrl": url, "commitOid": oid, "success": True})
            else:
                self._send(404, {}, error="EntryNotFound")

        def _path(self) -> str:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            return path

        def _send(
            self, status: int, content: Any, headers: dict[str, str] | None = None, error: str = ""
        ) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
