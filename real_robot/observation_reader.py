"""Reading of observations; invalid ones and those out of order are rejected."""

from __future__ import annotations

import numpy as np

from ebt_policy.real_robot.drivers.base import Driver, Observation


class ObservationReader:
    """A reader of the newest valid observation of a robot.

    Args:
        driver: driver of the robot.
        shapes: name -> shape of each value that the policy reads.
        action_dim: A, the number of entries of an action.

    Attributes:
        newest: newest valid observation, None before the first.
        rejection: why the last observation was rejected, "" if it was accepted.
    """

    def __init__(self, driver: Driver, shapes: dict[str, tuple[int, ...]], action_dim: int) -> None:
        self._driver, self._shapes, self._action_dim = driver, shapes, action_dim
        self.newest: Observation | None = None
        self.rejection = ""

    def read(self) -> None:
        """Read the driver's observation, and reject it if it is invalid or older than the newest.

        Raises:
            DriverError: the robot cannot be reached.
        """
        observation = self._driver.read()
        self.rejection = "" if observation is None else self._find_defect(observation)
        if observation is not None and not self.rejection:
            self.newest = observation

    def _find_defect(self, observation: Observation) -> str:
        """Return why an observation is rejected, "" if it is valid."""
        values = {"position": observation.position, **observation.values}
        for name, shape in {"position": (self._action_dim,), **self._shapes}.items():
            if name not in values:
                names = ", ".join(sorted(observation.values))
                return f"the observation has no {name}; it has {names}"
            if tuple(np.shape(values[name])) != shape:
                return (
                    f"the observation's {name} has the shape {np.shape(values[name])} instead of "
                    f"{shape}"
                )
            if not np.isfinite(values[name]).all():
                return f"the observation's {name} has NaN or infinity"
        if self.newest is not None and observation.stamp < self.newest.stamp:
            return "an observation arrived out of order"
        return ""
