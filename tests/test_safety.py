"""The safety layer: commands stay within the limits for any input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ebt_policy.real_robot.errors import SafetyError
from ebt_policy.real_robot.limits import Limits, Workspace
from ebt_policy.real_robot.safety import (
    ChunkProjection,
    Motion,
    brake,
    limit_chunks,
    limit_command,
    stopping_travel,
)

DT = 0.1
ANY = st.floats(allow_nan=True, allow_infinity=True, width=64)
A = 2  # action dimension


def build(low=(0.0, -1.0), high=(10.0, 1.0), velocity=(5.0, 2.0), acceleration=(20.0, 3.0), **more):
    max_tracking_error = np.array(more.pop("max_tracking_error", (np.inf, np.inf)))
    rows = (np.array(row, dtype=float) for row in (low, high, velocity, acceleration))
    return Limits(("x", "y"), *rows, max_tracking_error, **more)


@st.composite
def any_limits(draw):
    def number(minimum, maximum):
        return arrays(float, A, elements=st.floats(minimum, maximum))

    low, size = draw(number(-1e3, 1e3)), draw(number(1e-3, 1e3))
    velocity, acceleration = draw(number(1e-3, 1e4)), draw(number(1e-3, 1e5))
    return Limits(("x", "y"), low, low + size, velocity, acceleration, np.full(A, np.inf))


def broken_limit(limits, command, motion, measured=None):
    """Return the limit that a command breaks, computed independently of the safety layer."""
    slack = 1e-6 * (1 + np.abs(limits.low) + np.abs(limits.high))
    travel = command - motion.position
    if (command < limits.low).any() or (command > limits.high).any():
        return "position"
    if (np.abs(travel) > limits.velocity * DT + slack).any():
        return "velocity"
    if (np.abs(travel - motion.travel) > limits.acceleration * DT**2 + slack).any():
        return "acceleration"
    if (
        measured is not None
        and (np.abs(command - measured) > limits.max_tracking_error + slack).any()
    ):
        return "max_tracking_error"
    return None


@settings(max_examples=300, deadline=None)
@given(any_limits(), st.data())
def test_commands_stay_within_limits_for_any_desired_action(limits, data):
    share = data.draw(arrays(float, A, elements=st.floats(0, 1)))
    motion = Motion.at_rest(limits.low + share * (limits.high - limits.low))
    motion = Motion.at_rest(np.clip(motion.position, limits.low, limits.high))
    measured = np.zeros(A)
    for _ in range(12):
        desired = data.draw(arrays(float, A, elements=ANY))
        if not np.isfinite(desired).all():
            with pytest.raises(SafetyError, match="NaN or infinite"):
                limit_command(limits, desired, motion, DT, measured)
            continue
        limited = limit_command(limits, desired, motion, DT, measured)
        assert broken_limit(limits, limited.command, motion) is None
        unclamped = ~limited.clamped
        span = (limits.high - limits.low)[unclamped]
        assert (np.abs(limited.command[unclamped] - desired[unclamped]) <= 1e-4 * span).all()
        motion = motion.advance(limited.command)
    for _ in range(3):  # braking is always possible and slows down
        command = brake(limits, motion, DT)
        assert broken_limit(limits, command, motion) is None
        slower = np.abs(command - motion.position) <= np.abs(motion.travel) + 1e-9
        assert slower.all()
        motion = motion.advance(command)


@settings(max_examples=200, deadline=None)
@given(any_limits(), arrays(float, (3, 9, A), elements=st.floats(-2e3, 2e3)), st.integers(0, 8))
def test_chunk_limits_equal_command_limits(limits, chunks, brakes):
    motion = Motion.at_rest((limits.low + limits.high) / 2)
    allowed = limit_chunks(limits, chunks, motion, DT)
    for chunk, desired in zip(allowed, chunks, strict=True):
        state = motion
        for i, command in enumerate(chunk):
            assert broken_limit(limits, command, state) is None
            alone = limit_command(limits, desired[i], state, DT, np.zeros(A)).command
            np.testing.assert_allclose(alone, command, rtol=1e-9, atol=1e-9)
            state = state.advance(command)
    again = limit_chunks(limits, allowed, motion, DT)  # allowed chunks do not change
    np.testing.assert_allclose(again, allowed, rtol=1e-6, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    arrays(float, A, elements=st.floats(-5, 15)),
    arrays(float, A, elements=st.floats(-3, 3)),
    arrays(float, A, elements=st.floats(-1e6, 1e6)),
)
def test_tracking_error_is_limited_or_refused(measured, max_tracking_error, desired):
    limits = build(max_tracking_error=np.abs(max_tracking_error) + 0.1)
    motion = Motion.at_rest(np.array([5.0, 0.0]))
    try:
        limited = limit_command(limits, desired, motion, DT, measured)
    except SafetyError as error:
        assert "does not follow its commands" in str(error)
        reachable = np.minimum(limits.velocity * DT, limits.acceleration * DT**2)
        assert (np.abs(motion.position - measured) > limits.max_tracking_error - reachable).any()
    else:
        assert broken_limit(limits, limited.command, motion, measured) is None


@given(st.floats(0, 1e4), st.floats(1e-4, 1e4))
def test_braking_from_maximum_travel_ends_within_the_limits(room, slowing):
    travel = float(stopping_travel(np.array(room), np.array(slowing)))
    ticks = int(min(travel / slowing, 1e5))
    total = travel * (ticks + 1) - slowing * ticks * (ticks + 1) / 2
    assert total <= room * (1 + 1e-9) + 1e-9
    if ticks < 1e5:
        assert total == pytest.approx(room, rel=1e-6, abs=1e-6)


def test_braking_distance_equals_the_formula():
    limits = build(low=(0, -100), high=(1000, 100), velocity=(50, 2), acceleration=(100, 3))
    motion = Motion(np.array([100.0, 0.0]), np.array([5.0, 0.0]))  # 50 per second
    ticks = 0
    while motion.travel.any():
        motion, ticks = motion.advance(brake(limits, motion, DT)), ticks + 1
    assert ticks == 5  # 50 / 100 s
    assert motion.position[0] == pytest.approx(100 + 4 + 3 + 2 + 1)


def test_robot_outside_its_limits_does_not_move():
    outside = Motion.at_rest(np.array([5.0, 1.5]))
    with pytest.raises(SafetyError) as refusal:
        limit_command(build(), np.array([5.0, 0.0]), outside, DT, outside.position)
    assert str(refusal.value) == (
        "the robot is outside its limits: y is at 1.5, the range is -1 to 1; move it back by hand."
    )


def test_blocked_robot_error_names_the_maximum_tracking_error():
    limits, motion = build(max_tracking_error=(2.0, 0.3)), Motion.at_rest(np.array([5.0, 0.0]))
    with pytest.raises(SafetyError) as refusal:
        limit_command(limits, motion.position, motion, DT, np.array([5.0, 0.9]))
    assert str(refusal.value) == (
        "the robot does not follow its commands: y is at 0.9, the last command was 0, and "
        "robot.limits.max_tracking_error=0.3; check what blocks it."
    )


@pytest.mark.parametrize("first", [0, 4, 9])
def test_array_and_tensor_limits_agree(first):
    limits, rest = build(), Motion.at_rest(np.array([5.0, 0.0]))
    chunks = np.random.default_rng(0).normal(size=(3, 2, 9, A)) * 50
    expected = (
        np.concatenate(
            [chunks[..., :first, :], limit_chunks(limits, chunks[..., first:, :], rest, DT)],
            axis=-2,
        )
        if first < 9
        else chunks
    )
    tensors = torch.from_numpy(chunks), rest.to("cpu"), DT, torch.tensor(first)
    np.testing.assert_array_equal(limit_chunks(limits, chunks, rest, DT, first), expected)
    np.testing.assert_array_equal(limit_chunks(limits.bounds(), *tensors).numpy(), expected)


def test_chunks_of_a_policy_are_limited_in_double_precision():
    limits, rest = build(), Motion.at_rest(np.array([5.0, 0.0]))
    chunks = np.random.default_rng(0).normal(size=(1, 4, A)).astype(np.float32)
    projected = ChunkProjection(limits, limits.bounds(), rest, DT, 1)(torch.from_numpy(chunks))
    expected = limit_chunks(limits, chunks.astype(np.float64), rest, DT, 1)
    assert projected.dtype == torch.float32
    np.testing.assert_array_equal(projected.numpy(), expected.astype(np.float32))


def test_invalid_actions_are_refused():
    limits, motion = build(), Motion.at_rest(np.array([5.0, 0.0]))
    with pytest.raises(SafetyError, match=r"2 numbers \(x, y\), got shape \(3,\)"):
        limit_command(limits, np.zeros(3), motion, DT, np.zeros(2))
    with pytest.raises(SafetyError, match="command for y is NaN"):
        limit_command(limits, np.array([5.0, np.nan]), motion, DT, np.zeros(2))


def test_tool_stays_and_brakes_within_its_workspace():
    box = Workspace(
        np.array([-9.0] * 3), np.array([5.4, 9, 9]), lambda q: np.array([q[0], q[1], 0])
    )
    limits = build(workspace=box)
    motion = Motion(np.array([5.0, 0.0]), np.array([0.3, 0.0]))
    measured = motion.position
    with pytest.raises(SafetyError, match="would leave its workspace"):
        limit_command(
            limits, np.array([5.35, 0.0]), motion, DT, measured
        )  # inside, but too fast to brake
    assert limit_command(limits, np.array([5.1, 0.0]), motion, DT, measured).command[
        0
    ] == pytest.approx(5.1)


@pytest.mark.parametrize("direction", [1, -1])
def test_workspace_is_usable_up_to_the_braking_distance(direction):
    """A travel of 0.5 per tick can change by 0.2 per tick, so braking takes 0.3 + 0.1 more."""
    motion = Motion(np.array([5.0, 0.0]), np.array([0.5 * direction, 0.0]))
    desired, stop = 5.0 + 0.5 * direction, 5.0 + 0.9 * direction
    for room, allowed in ((1e-6, True), (-1e-6, False)):
        ends = sorted((5.0 - 9.0 * direction, stop + room * direction))
        low, high = np.array([ends[0], -9, -9]), np.array([ends[1], 9, 9])
        box = Workspace(low, high, lambda q: np.array([q[0], q[1], 0]))
        limits, command = build(workspace=box), np.array([desired, 0.0])
        if allowed:
            limited = limit_command(limits, command, motion, DT, motion.position)
            assert limited.command[0] == pytest.approx(desired)
        else:
            with pytest.raises(SafetyError, match="would leave its workspace"):
                limit_command(limits, command, motion, DT, motion.position)
