"""Errors that a user can fix.

The command line prints a `UserError` as one sentence. Every other error is a bug and keeps its
traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Base of errors that a user can fix.

    The message is one sentence: what is wrong, the value received, and how to fix it.
    """


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message names the option to change."""


class OutputError(UserError, OSError):
    """A file or folder that cannot be written; the message names it."""
