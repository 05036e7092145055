"""Downloads into a cache: resumable, verified, and visible only when they are complete."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs
import requests
from filelock import FileLock
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ebt_policy.errors import UserError
from ebt_policy.io.progress import ReportedProgress

_TIMEOUT_S = (10.0, 60.0)  # seconds to connect (short, to fail fast) and between two reads
_BLOCK = 1 << 16  # bytes; at most this much is lost when the connection drops


class DownloadError(UserError, OSError):
    """A file that could not be downloaded, or has unexpected content."""


def cache_dir() -> Path:
    """Return the folder for downloads: $EBT_POLICY_CACHE, or a folder in the user's cache.

    The folder may not exist yet.
    """
    folder = os.environ.get("EBT_POLICY_CACHE")
    default = platformdirs.user_cache_dir("ebt_policy", appauthor=False)
    return Path(folder or default).expanduser()


def fetch(url: str, filename: str, sha256: str | None = None) -> Path:
    """Return the path of `filename` in the cache; download it from `url` if it is missing.

    The download goes to `filename`.part, which the next call resumes after an interruption. It is
    renamed when it is complete and has the expected SHA-256. If several processes need the file,
    one downloads it and the others wait.

    Args:
        url: address of the file.
        filename: path of the file in the cache.
        sha256: expected SHA-256 (hexadecimal); None for no check.

    Raises:
        DownloadError: if the transfer fails, the checksum is wrong, or the cache cannot be written.
    """
    target = cache_dir() / filename
    try:
        if _is_complete(target, sha256):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")):
            return _fetch(url, target, sha256)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"Could not use the cache at {target.parent} ({error.strerror or error}): set "
            "EBT_POLICY_CACHE to a writable folder."
        ) from error


def fetch_from_hub(dataset: str, file: str, filename: str) -> Path:
    """Return a file of a data set on the Hugging Face Hub; see `fetch`.

    The SHA-256 is verified if the Hub states it.

    Args:
        dataset: name of the data set on the Hub.
        file: path of the file in the data set.
        filename: path of the file in the cache.

    Raises:
        DownloadError: as in `fetch`.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    target = cache_dir() / filename
    if target.exists():  # a file gets this name only after verification
        return target
    url = hf_hub_url(dataset, file, repo_type="dataset")
    try:
        stated = get_hf_file_metadata(url).etag or ""
    except Exception as error:  # its class depends on the HTTP library of the Hub's client
        raise DownloadError(
            f"Could not reach {url} ({type(error).__name__}): check the network, or download it on "
            f"another machine and put it at {target}."
        ) from error
    return fetch(url, filename, stated if len(stated) == 64 else None)


def _is_complete(target: Path, sha256: str | None) -> bool:
    return target.exists() and (sha256 is None or _sha256(target) == sha256.lower())


def _fetch(url: str, target: Path, sha256: str | None) -> Path:
    if _is_complete(target, sha256):  # another process has downloaded it
        return target
    partial = target.with_name(f"{target.name}.part")
    try:
        _download(url, partial)
    except requests.RequestException as error:
        answer = error.response
        reason = type(error).__name__ if answer is None else f"HTTP {answer.status_code}"
        raise DownloadError(
            f"Could not download {url} ({reason}): check the network, or download it "
            f"on another machine and put it at {target}."
        ) from error
    if sha256 is not None and (actual_sha256 := _sha256(partial)) != sha256.lower():
        partial.unlink()
        raise DownloadError(
            f"The file from {url} has SHA-256 {actual_sha256} instead of {sha256} and was deleted: "
            f"try again, or put the right file at {target}."
        )
    partial.replace(target)
    return target


def _download(url: str, partial: Path) -> None:
    """Download to `partial`; resume an earlier download if the server supports it."""
    offset = partial.stat().st_size if partial.exists() else 0
    # In a compressed transfer, offsets and lengths would count compressed bytes.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        span = response.headers.get("Content-Range", "")
        if offset and response.status_code == 416:
            if span == f"bytes */{offset}":
                return  # already complete: killed between the last byte and the rename
            partial.unlink()
            return _download(url, partial)
        response.raise_for_status()
        resumed = response.status_code == 206 and span.startswith(f"bytes {offset}-")
        start = offset if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdecimal() else None
        with partial.open("ab" if resumed else "wb") as file, _progress() as progress:
            task = progress.add_task(partial.stem, total=total, completed=start)
            for block in response.iter_content(_BLOCK):
                file.write(block)
                progress.advance(task, len(block))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and partial.stat().st_size != total:
        raise requests.ConnectionError(f"{partial.stat().st_size} of {total} bytes arrived")


def _progress() -> ReportedProgress:
    return ReportedProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
