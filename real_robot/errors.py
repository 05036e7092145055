"""Errors of the robot that a user can fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ebt_policy.errors import UserError


class SafetyError(UserError, ValueError):
    """Error for a robot that must not move. The message explains what to do."""


class DriverError(UserError, RuntimeError):
    """Error for a robot that cannot be reached. The message names the missing connection."""


class PolicyError(UserError, RuntimeError):
    """Error for a policy that failed or did not predict a valid chunk of actions."""


class RecordError(UserError, OSError):
    """Error for a recording that cannot be written. The journal keeps all earlier ticks."""


class MessageError(UserError, ValueError):
    """Error for a ROS 2 message that does not fit the configuration and is rejected."""


@contextmanager
def driver_errors(method: str) -> Iterator[None]:
    """Convert errors of a driver to `DriverError`; a `SafetyError` is raised unchanged.

    Args:
        method: name of the called method of the driver, for the message.
    """
    try:
        yield
    except (DriverError, SafetyError):
        raise
    except Exception as error:  # Libraries raise errors of many types for a lost connection.
        cause = f"{type(error).__name__}: {error}"
        raise DriverError(f"the driver failed in {method}() ({cause}).") from error
