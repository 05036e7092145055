"""The contract that every driver satisfies."""

from __future__ import annotations

import numpy as np
import pytest

from ebt_policy.real_robot.clock import MonotonicClock
from ebt_policy.real_robot.drivers.base import SimulatedDriver
from ebt_policy.real_robot.errors import DriverError


def check_driver(driver, patience_s=300.0):
    """Check that a driver, not yet connected, satisfies the contract of `Driver`.

    Args:
        patience_s: seconds to wait for an expected event; large because a busy machine is slow.
    """
    driver.stop()  # has no effect before connecting
    with pytest.raises(DriverError, match="not"):
        driver.read()
    with pytest.raises(DriverError, match="not"):
        driver.send(np.zeros(2), 0.0)
    driver.connect()
    driver.reset(3)
    clock = MonotonicClock()
    observation = driver.read()
    assert observation.values["obs"].dtype == np.float32 and observation.position.shape == (2,)
    end = clock.now() + patience_s
    assert (
        np.isfinite(observation.position).all()
        and -0.01 <= clock.now() - observation.stamp < patience_s
    )
    stamps = [observation.stamp]
    while stamps[-1] == stamps[0] or len(stamps) < 10:  # read() does not wait
        driver.send(observation.position, clock.now() + 0.1)
        observation = driver.read()
        stamps.append(observation.stamp)
        assert clock.now() < end
        clock.wait_until(clock.now() + 0.03)
    assert (np.diff(stamps) >= 0).all()
    if isinstance(driver, SimulatedDriver):
        assert 0 <= driver.score <= 1 and not driver.solved
    driver.stop()
    driver.stop()
    driver.close()
    driver.close()
    driver.stop()
    with pytest.raises(DriverError):
        driver.read()
