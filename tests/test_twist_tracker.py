"""Velocities of a robot that takes velocities and follows commanded positions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from ebt_policy.real_robot.drivers.twist_tracker import TwistTracker

TICK_S, LIMIT, MAX_AGE_S = 0.05, 0.5, 0.25


def make_tracker(entries=3):
    return TwistTracker(TICK_S, np.full(entries, LIMIT), MAX_AGE_S)


def measure_motion(tracker, start, end, stamp):
    """Measure two positions, so that the measured position has changed."""
    tracker.measure(np.asarray(start, dtype=float), stamp - 0.01)
    tracker.measure(np.asarray(end, dtype=float), stamp)


def test_velocity_is_the_travel_of_the_command_per_nominal_tick():
    tracker = make_tracker()
    assert not tracker.twist(np.zeros(3), 0.05, 0.0).any()
    # The tick began 49 ms too late, 1 ms before the command is due.
    twist = tracker.twist(np.array([0.02, -0.01, 0.0]), 0.10, 0.099)
    np.testing.assert_allclose(twist, [0.4, -0.2, 0, 0, 0, 0])


@pytest.mark.parametrize("stamps", ["of the measurement", "always new"])
def test_repeated_command_and_a_frozen_position_give_no_velocity(stamps):
    tracker, goal = make_tracker(), np.array([0.3, 0.0, 0.0])
    measure_motion(tracker, [0, 0, 0], [0.1, 0, 0], stamp=0.0)
    speeds = []
    for tick in range(40):
        now = tick * TICK_S
        tracker.measure(np.array([0.1, 0, 0]), 0.0 if stamps == "of the measurement" else now)
        speeds.append(np.abs(tracker.twist(goal, now + TICK_S, now)).max())
    assert 0 < speeds[0] <= 0.2 and not any(speeds[6:])  # 0.25 s are 5 ticks


def test_first_command_after_a_pause_or_a_stop_has_no_travel():
    tracker = make_tracker()
    tracker.twist(np.zeros(3), 0.05, 0.0)
    assert not tracker.twist(np.full(3, 0.01), 0.45, 0.4).any()
    tracker.restart()
    assert not tracker.twist(np.zeros(3), 0.50, 0.45).any()


@given(
    arrays(float, (6, 6), elements=st.floats(-1e3, 1e3)),
    arrays(float, (6, 6), elements=st.floats(-1e3, 1e3) | st.just(np.nan)),
    st.lists(st.floats(0, 0.1), min_size=6, max_size=6),
)
def test_velocities_are_finite_and_within_the_limits(goals, positions, lateness):
    tracker = make_tracker(6)
    for tick, late in enumerate(lateness):
        now = tick * TICK_S + late
        tracker.measure(positions[tick], now)
        twist = tracker.twist(goals[tick], (tick + 1) * TICK_S, now)
        assert np.isfinite(twist).all() and np.abs(twist[:3]).max() <= LIMIT
        # Roll, pitch and yaw are within their limits, and so each axis adds at most one of them.
        assert np.linalg.norm(twist[3:]) <= 3 * LIMIT


def test_error_is_that_of_the_time_of_the_measurement():
    """A robot that follows its commands exactly is not corrected, however old measurements are."""
    tracker = make_tracker()
    for tick in range(10):
        now = tick * TICK_S
        stamp = now - 0.08
        tracker.measure(np.array([max(0.0, 0.4 * stamp), 0, 0]), stamp)
        twist = tracker.twist(np.array([0.02 * (tick + 1), 0, 0]), now + TICK_S, now)
    np.testing.assert_allclose(twist, [0.4, 0, 0, 0, 0, 0], atol=1e-9)


def test_tracking_error_is_corrected():
    tracker = make_tracker()
    measure_motion(tracker, [0, 0, 0], [-0.1, 0.2, 9.0], stamp=0.0)
    np.testing.assert_allclose(tracker.twist(np.zeros(3), 0.05, 0.0)[:3], [0.1, -0.2, -LIMIT])


def test_angles_are_corrected_by_the_shorter_way():
    tracker, goal = make_tracker(6), np.array([0, 0, 0, np.pi - 0.1, 0, 0])
    measure_motion(tracker, np.zeros(6), [0, 0, 0, -np.pi + 0.1, 0, 0], stamp=0.0)
    np.testing.assert_allclose(tracker.twist(goal, 0.05, 0.0), [0, 0, 0, -0.2, 0, 0], atol=1e-9)


@given(arrays(float, 3, elements=st.floats(-3, 3)), arrays(float, 3, elements=st.floats(-0.4, 0.4)))
def test_angular_velocity_turns_the_robot_to_the_commanded_angles(angles, rates):
    tracker = make_tracker(6)
    travel = rates * TICK_S
    tracker.twist(np.array([0, 0, 0, *(angles - travel)]), 0.05, 0.0)
    angular = tracker.twist(np.array([0, 0, 0, *angles]), 0.10, 0.05)[3:]
    step = 1e-4
    before, after = (Rotation.from_euler("xyz", angles + s * step * rates) for s in (-1, 1))
    expected = (after * before.inv()).as_rotvec() / (2 * step)
    np.testing.assert_allclose(angular, expected, atol=1e-6)
