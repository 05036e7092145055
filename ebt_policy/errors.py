"""Errors that a user can fix.

The command line prints a `UserError` as one sentence. Every other error is a bug and keeps its
traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Base of errors that a user can fix.

    The message is one sentence: what is wrong, the value received, and how to fix it.
    """


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message names the option to change."""


class OutputError(UserError, OSError):
    """A file or folder that cannot be written; the message names it."""


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return a sentence that suggests the most similar of ``names``; "" if none is similar.

    Args:
        name: unknown name.
        names: known names.
        cutoff: least similarity, see `difflib.get_close_matches`.

    >>> did_you_mean("lfit", ["lift", "can"])
    ' Did you mean lift?'
    """
    near = get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]}?" if near else ""
