"""Repositories on the Hugging Face Hub: ``hf://USER/NAME`` or ``hf://USER/NAME@REVISION``.

They are downloaded once, into the cache of huggingface_hub. HF_HUB_OFFLINE=1 uses only the cache.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from ebt_policy.errors import UserError
from ebt_policy.io.paths import reason

PREFIX = "hf://"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class HubError(UserError):
    """A repository that is not on the Hub, or cannot be transferred; the message names it."""


class HubSource(NamedTuple):
    """A repository on the Hub.

    Args:
        name: ``USER/NAME``.
        revision: branch, tag or commit; None for the main branch.
    """

    name: str
    revision: str | None = None


def is_repository_name(text: str) -> bool:
    """Return whether a text has the form ``USER/NAME``.

    >>> is_repository_name("someone/arm"), is_repository_name("runs/a/b")
    (True, False)
    """
    return _NAME.fullmatch(text) is not None


def parse_source(text: str) -> HubSource:
    """Parse ``hf://USER/NAME[@REVISION]``.

    Raises:
        HubError: the text has another form.

    >>> parse_source("hf://someone/arm@v2")
    HubSource(name='someone/arm', revision='v2')
    """
    name, _, revision = text.removeprefix(PREFIX).partition("@")
    if not text.startswith(PREFIX) or not is_repository_name(name) or "@" in revision:
        raise HubError(f"{text} must be hf://USER/NAME or hf://USER/NAME@REVISION.")
    return HubSource(name, revision or None)


def download(
    text: str, repo_type: Literal["model", "dataset"], patterns: Sequence[str] | None = None
) -> Path:
    """Download ``hf://USER/NAME[@REVISION]`` into the cache and return its folder.

    A process downloads a repository once, so a branch that moves later has no effect.

    Args:
        text: the repository.
        repo_type: kind of repository.
        patterns: patterns of the files to download; None for all files.

    Raises:
        HubError: the text has another form, or the download failed.
    """
    return _download(text, repo_type, None if patterns is None else tuple(patterns))


@cache
def _download(text: str, repo_type: str, patterns: tuple[str, ...] | None) -> Path:
    source = parse_source(text)
    from huggingface_hub import snapshot_download  # slow to import

    try:
        folder = snapshot_download(
            source.name, repo_type=repo_type, revision=source.revision,
            allow_patterns=None if patterns is None else list(patterns),
        )  # fmt: skip
    except Exception as error:  # errors of the Hub's client and its HTTP library share no base
        raise HubError(
            f"{text} cannot be downloaded ({reason(error)}); check the name and the network, log "
            "in with `hf auth login` if it is private, or download it on another machine and pass "
            "its folder."
        ) from error
    return Path(folder)
