"""Errors of the robot that a user can fix."""

from __future__ import annotations

from ebt_policy.errors import UserError


class SafetyError(UserError, ValueError):
    """A robot that must not move. The message says what to do."""


class DriverError(UserError, RuntimeError):
    """A robot that cannot be reached any more. The message says what was lost."""


class PolicyError(UserError, RuntimeError):
    """A policy that failed, or that predicted something other than a chunk of actions."""


class RecordError(UserError, OSError):
    """A recording that cannot be written. The journal keeps what was recorded until then."""


class MessageError(UserError, ValueError):
    """A message that does not fit the configuration and is rejected."""
