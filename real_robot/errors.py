"""Errors of the robot that a user can fix."""

from __future__ import annotations

from ebt_policy.errors import UserError


class SafetyError(UserError, ValueError):
    """A robot that must not move. The message says what to do."""
