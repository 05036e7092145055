"""Downloads from a local server: complete, resumed, interrupted, invalid and unreachable."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ebt_policy.io.download import DownloadError, cache_dir, fetch

BODY = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Server of BODY: /file supports ranges, /plain does not, /cut disconnects halfway."""

    def do_GET(self) -> None:
        range_header = self.headers.get("Range")
        self.server.requests.append((self.path, range_header))  # type: ignore[attr-defined]
        start = int(range_header.removeprefix("bytes=").rstrip("-")) if range_header else 0
        if self.path == "/absent":
            return self.send_error(404)
        if self.path == "/plain":
            start = 0
        if start >= len(BODY):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(BODY)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = BODY[start:]
        if start:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/cut" and not start:
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def url(server, monkeypatch, tmp_path):
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return f"http://127.0.0.1:{server.server_port}"


def test_concurrent_fetches_download_once(server, url):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(f"{url}/file", "data.bin", SHA256), range(4)))
    assert len(set(paths)) == 1 and paths[0].read_bytes() == BODY
    assert server.requests == [("/file", None)]


def test_unwritable_cache_is_named(url, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DownloadError, match=r"Could not use the cache at .*EBT_POLICY_CACHE"):
        fetch(f"{url}/file", "data.bin")


def cached_files() -> list[str]:
    return [p.name for p in cache_dir().iterdir() if p.suffix != ".lock"]


def write_partial(content: bytes):
    cache_dir().mkdir(parents=True, exist_ok=True)
    path = cache_dir() / "data.bin.part"
    path.write_bytes(content)
    return path


def test_cache_dir_is_set_by_an_environment_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("EBT_POLICY_CACHE")
    assert cache_dir().name == "ebt_policy"


@pytest.mark.parametrize("sha256", [None, SHA256, SHA256.upper()])
def test_complete_download_is_cached(url, server, sha256):
    path = fetch(f"{url}/file", "data.bin", sha256)
    assert path.read_bytes() == BODY
    assert cached_files() == ["data.bin"]
    assert fetch(f"{url}/file", "data.bin", sha256) == path
    assert len(server.requests) == 1


@pytest.mark.parametrize("page", ["file", "plain"])
def test_partial_download_is_resumed_or_restarted(url, server, page):
    leftover = write_partial(BODY[:1000])
    path = fetch(f"{url}/{page}", "data.bin", SHA256)
    assert path.read_bytes() == BODY
    assert server.requests == [(f"/{page}", "bytes=1000-")]
    assert not leftover.exists()


def test_download_killed_before_its_rename_is_completed(url, server):
    write_partial(BODY)
    assert fetch(f"{url}/file", "data.bin", SHA256).read_bytes() == BODY
    assert len(server.requests) == 1


def test_too_long_partial_download_is_replaced(url):
    write_partial(BODY + b"more")
    assert fetch(f"{url}/file", "data.bin", SHA256).read_bytes() == BODY


def test_interrupted_download_resumes(url, server):
    with pytest.raises(DownloadError, match="Could not download"):
        fetch(f"{url}/cut", "data.bin", SHA256)
    assert not (cache_dir() / "data.bin").exists()
    partial_size = (cache_dir() / "data.bin.part").stat().st_size
    assert len(BODY) // 4 < partial_size <= len(BODY) // 2
    assert fetch(f"{url}/cut", "data.bin", SHA256).read_bytes() == BODY
    assert server.requests[-1] == ("/cut", f"bytes={partial_size}-")


def test_download_with_a_wrong_checksum_is_deleted(url):
    with pytest.raises(DownloadError, match=f"SHA-256 {SHA256} instead of 00.* was deleted"):
        fetch(f"{url}/file", "data.bin", "0" * 64)
    assert cached_files() == []


def test_partial_download_of_another_file_is_detected(url):
    write_partial(b"x" * 1000)
    with pytest.raises(DownloadError, match="was deleted"):
        fetch(f"{url}/file", "data.bin", SHA256)
    assert fetch(f"{url}/file", "data.bin", SHA256).read_bytes() == BODY


def test_cached_file_of_another_version_is_replaced(url):
    cache_dir().mkdir(parents=True)
    (cache_dir() / "data.bin").write_bytes(b"old version")
    assert fetch(f"{url}/file", "data.bin", SHA256).read_bytes() == BODY


def test_http_errors_are_reported(url):
    with pytest.raises(DownloadError, match=r"/absent \(HTTP 404\).* put it at .*data\.bin"):
        fetch(f"{url}/absent", "data.bin")


def test_unreachable_server_is_reported(url, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="check the network") as caught:
        fetch(f"{url}/file", "data.bin")
    assert isinstance(caught.value, DownloadError) and url in str(caught.value)


def test_invalid_url_is_reported(url):
    with pytest.raises(DownloadError, match="Could not download"):
        fetch("nowhere", "data.bin")
