"""Errors that a user can mend; their messages name the option to change."""

from __future__ import annotations


class EnvError(ValueError):
    """An environment, task option or request for a rollout that cannot be used."""


class RenderingError(EnvError):
    """No OpenGL backend can draw on this machine."""
