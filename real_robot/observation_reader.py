"""Reading of observations; invalid ones and those out of order are rejected.

Shapes: H x W pixels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ebt_policy.data.dataset import is_frame_shape
from ebt_policy.data.frame_cache import resize
from ebt_policy.real_robot.clock import Clock
from ebt_policy.real_robot.drivers.base import Driver, Observation
from ebt_policy.real_robot.errors import driver_errors

STAMP_TOLERANCE_S = 0.01  # a stamp may be this much later than the time of its reading, s


class ObservationReader:
    """A reader of the newest valid observation of a robot.

    Args:
        driver: driver of the robot.
        shapes: name -> shape of each value that the policy reads or the run records.
        action_dim: A, the number of entries of an action.
        clock: clock of the run, which also gives the stamps of observations.

    Attributes:
        newest: newest valid observation, None before the first.
        rejection: why the last observation was rejected, "" if it was accepted.
    """

    def __init__(
        self, driver: Driver, shapes: dict[str, tuple[int, ...]], action_dim: int, clock: Clock
    ) -> None:
        self._driver, self._shapes, self._action_dim = driver, shapes, action_dim
        self._clock = clock
        self.newest: Observation | None = None
        self.rejection = ""

    def read(self) -> None:
        """Read the driver's observation, and reject it if it is invalid or older than the newest.

        Frames of a camera with another resolution are resized as in training.

        Raises:
            DriverError: the robot cannot be reached.
        """
        with driver_errors("read"):
            observation = self._driver.read()
            if observation is not None:
                observation = self._resize_frames(observation)
            self.rejection = "" if observation is None else self._find_defect(observation)
        if observation is not None and not self.rejection:
            self.newest = observation

    def _resize_frames(self, observation: Observation) -> Observation:
        """Return an observation whose frames have the expected size."""
        resized = {}
        for name, shape in self._shapes.items():
            frame = observation.values.get(name)
            if frame is None or np.shape(frame) == shape or not is_frame_shape(shape):
                continue
            if is_frame_shape(np.shape(frame)) and frame.dtype == np.uint8:
                resized[name] = resize(frame[None], shape[:2])[0]
        if not resized:
            return observation
        return replace(observation, values={**observation.values, **resized})

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
        now = self._clock.now()
        if not -np.inf < observation.stamp <= now + STAMP_TOLERANCE_S:
            return (
                f"the observation's stamp {observation.stamp:.3f} is not a past time of the clock "
                f"of the run, which is at {now:.3f}; the driver must use context.clock.now()"
            )
        if self.newest is not None and observation.stamp < self.newest.stamp:
            return "an observation arrived out of order"
        return ""
