"""Errors that a user can fix; their messages name the option to change."""

from __future__ import annotations


class EnvError(ValueError):
    """Error for an environment, task option or rollout request that cannot be used."""


class RenderingError(EnvError):
    """Error for a machine without a working OpenGL backend."""
