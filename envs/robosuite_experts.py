"""Scripted experts for robosuite's Lift, Can and Square with a single Panda.

Each action depends on the current state of the simulator, not on the time. An expert approaches an
object again if it slips or is moved away, so demonstrations may contain retries. The style of an
expert (speed, height, path, grasp, release position) is sampled once per episode. Demonstrations
therefore vary, even from similar initial states.

Actions are OSC_POSE deltas of robosuite's BASIC controller, where 1 is 0.05 m or 0.5 rad. The base
frame and the world frame have parallel axes, so a delta is the same in both. The last value is the
gripper: -1 opens, 1 closes. Lengths are in metres, angles in radians, vectors in the world frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

ACTION_PER_METRE, ACTION_PER_RADIAN = 1 / 0.05, 1 / 0.5  # action for a displacement of 1 m or 1 rad
# Finger yaws are wrapped to within half a period of this yaw, where the last joint is far from its
# limits.
CENTRAL_YAW = np.pi / 2 + 0.35
HOME_YAW = np.pi / 2  # finger yaw after a reset
SMOOTHING = 0.3  # weight of the previous motion in the next one
ACTION_NOISE = 0.03  # standard deviation of the noise of an action
YAW_ERROR_LEVER = 0.05  # m/rad, converts a yaw error to an equivalent position error
# The hand cannot point straight down at the full reach of the arm. Beyond this distance from the
# base (m), it leans outward by this angle per metre (rad/m).
LEAN_START, LEAN_PER_METRE = 0.68, 1.8
STRAIGHT_ELBOW = -0.25  # rad, elbow angle above which the arm is almost fully extended
SLOWDOWN_DISTANCE = 0.05  # m, distance to the goal at which a motion begins to slow down
NUT_PARKING_POSITION = np.array([-0.05, 0.15, 0.865])  # where a tilted nut is put down
# Opening between open fingers, m; closing speed below which the fingers are at rest, m/s.
OPEN_WIDTH, REST_SPEED = 0.065, 0.02


class ScriptedExpert(ABC):
    """An expert that approaches an object, grasps it, carries it along an arch, releases it, rises.

    Calling it returns the next action, (7,) float64 in [-1, 1]. Call it once before each step.

    Args:
        env: the robosuite environment, after its reset.
        rng: generator that samples the style of the episode and the noise.
    """

    speeds: ClassVar = (0.6, 0.95)  # range of the largest norm of an action's translation
    heights: ClassVar = (0.07, 0.12)  # m, range of the approach height above the grasp
    offsets: ClassVar = (0.003, 0.005, 0.004)  # m, largest grasp offset: across, along, up
    yaw_range: ClassVar = 0.1  # rad, largest yaw offset of the grasp

    def __init__(self, env: Any, rng: np.random.Generator):
        self.env, self.rng = env, rng
        self.speed = rng.uniform(*self.speeds)
        self.path_bend = rng.uniform(-0.4, 0.4)
        self.height = rng.uniform(*self.heights)
        self.grasp_offset = rng.uniform(-1, 1, 3) * self.offsets
        self.yaw_offset = rng.uniform(-1, 1) * self.yaw_range
        self.motion = np.zeros(6)
        self.releasing = False

    def __call__(self) -> np.ndarray:
        self.read_state()
        is_held = self.is_held()
        if is_held and self.may_release():
            self.releasing = True
        if self.opening > OPEN_WIDTH:
            self.releasing = False
        if self.releasing:  # The fingers open fully, so that they do not grasp the object again.
            return self.make_action(np.zeros(3), 0.0, -1.0)
        if is_held:
            return self.make_action(*self.carry(), 1.0)
        if self.is_finished():
            up = max(0.0, self.object_position[2] + self.height + 0.05 - self.hand[2])
            return self.make_action(np.array([0.0, 0.0, up]), 0.0, -1.0)
        return self.pick()

    def read_state(self) -> None:
        """Read the pose and finger yaw of the hand, the finger opening and the object's pose."""
        data, robot = self.env.sim.data, self.env.robots[0]
        site, gripper = robot.eef_site_id["right"], robot.gripper["right"]
        self.hand = data.site_xpos[site].copy()
        self.rotation = data.site_xmat[site].reshape(3, 3).copy()
        self.yaw = wrap_angle(np.arctan2(*self.rotation[1::-1, 0]), 2 * np.pi, CENTRAL_YAW)
        self.base_to_hand = self.hand[:2] - robot.base_pos[:2]
        self.elbow = float(data.qpos[robot.joint_indexes[3]])
        left, right = gripper.joints
        self.opening = float(data.get_joint_qpos(left) - data.get_joint_qpos(right))
        self.closing_speed = float(data.get_joint_qvel(right) - data.get_joint_qvel(left))
        body = self.env.sim.model.body_name2id(self.target_object().root_body)
        self.object_position = data.body_xpos[body].copy()
        # The columns are the axes of the object.
        self.object_axes = data.body_xmat[body].reshape(3, 3).copy()

    def is_held(self) -> bool:
        """Return whether both finger pads touch the object and the fingers are at rest."""
        gripper = self.env.robots[0].gripper
        is_touching = self.env._check_grasp(gripper=gripper, object_geoms=self.target_object())
        return bool(is_touching) and abs(self.closing_speed) < REST_SPEED

    def pick(self) -> np.ndarray:
        """Return the action that approaches the grasp from above and then closes the fingers."""
        point, yaw = self.grasp()
        goal = point + self.downward_rotation(yaw) @ (self.grasp_offset * [1, 1, -1])
        yaw = wrap_angle(yaw + self.yaw_offset, 2 * np.pi, CENTRAL_YAW)
        turn = yaw - self.yaw
        miss = np.abs(self.rotation.T @ (goal - self.hand))
        is_between_fingers = (miss < [0.015, 0.01, 0.008]).all() and abs(turn) < 0.15
        step, turn = self.travel(self.hand, goal, turn, self.height, 0.008)
        return self.make_action(step, turn, 1.0 if is_between_fingers else -1.0)

    def travel(
        self, position: np.ndarray, goal: np.ndarray, turn: float, height: float, tolerance: float
    ) -> tuple[np.ndarray, float]:
        """Return the next displacement (3,) and turn from `position` toward `goal`, from above.

        The intended height above the goal falls from `height` to 0 while the horizontal error,
        including the yaw error, falls from 2.5 * `tolerance` to `tolerance`. The sideways motion is
        slower below the intended height, and zero at `SLOWDOWN_DISTANCE` or more below it.
        """
        side = goal[:2] - position[:2]
        miss = np.linalg.norm(side) + YAW_ERROR_LEVER * abs(turn)
        above = height * np.clip((miss - tolerance) / (1.5 * tolerance), 0, 1)
        climb = goal[2] + above - position[2]
        free = np.clip(1 - climb / SLOWDOWN_DISTANCE, 0, 1)
        side = clip_norm(side + self.path_bend * np.array([-side[1], side[0]]), SLOWDOWN_DISTANCE)
        climb = np.clip(climb, -SLOWDOWN_DISTANCE, SLOWDOWN_DISTANCE)
        return np.array([*(free * side), climb]), free * turn

    def make_action(self, step: np.ndarray, turn: float, grip: float) -> np.ndarray:
        """Return the action (7,) for a displacement (3,), a turn about the vertical and a grip.

        The action also rotates the hand so that it points down.
        """
        target_rotation = self.downward_rotation(self.yaw + np.clip(turn, -1, 1))
        rotation = Rotation.from_matrix(target_rotation @ self.rotation.T).as_rotvec()
        if self.elbow > STRAIGHT_ELBOW:  # A straight elbow bends only if the hand is pulled back.
            step = np.append(-self.base_to_hand, 0.0)
        motion = [
            *clip_norm(step * ACTION_PER_METRE, self.speed),
            *clip_norm(rotation * ACTION_PER_RADIAN, 0.5 * self.speed),
        ]
        self.motion = SMOOTHING * self.motion + (1 - SMOOTHING) * np.array(motion)
        noisy = self.motion + self.rng.normal(0, ACTION_NOISE, 6)
        return np.clip([*noisy, grip], -1, 1)

    def downward_rotation(self, yaw: float) -> np.ndarray:
        """Return the rotation (3, 3) of a hand that points down, with its fingers along `yaw`."""
        distance = float(np.linalg.norm(self.base_to_hand))
        x, y = self.base_to_hand
        lean_angle = max(0.0, distance - LEAN_START) * LEAN_PER_METRE
        lean = lean_angle / distance * np.array([y, -x, 0.0])
        c, s = np.cos(yaw), np.sin(yaw)
        down = np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])
        return Rotation.from_rotvec(lean).as_matrix() @ down

    @abstractmethod
    def target_object(self) -> Any:
        """Return the robosuite object to grasp."""

    @abstractmethod
    def grasp(self) -> tuple[np.ndarray, float]:
        """Return the grasp position (3,) and the yaw of the line between the fingers."""

    @abstractmethod
    def carry(self) -> tuple[np.ndarray, float]:
        """Return the next displacement (3,) and turn while the object is held."""

    def may_release(self) -> bool:
        """Return whether the held object may be released."""
        return False

    def is_finished(self) -> bool:
        """Return whether the task is finished and the object may stay where it is."""
        return False


class LiftExpert(ScriptedExpert):
    """An expert that lifts a cube off the table."""

    speeds: ClassVar = (0.4, 0.7)
    offsets: ClassVar = (0.003, 0.006, 0.004)

    def target_object(self) -> Any:
        return self.env.cube

    def grasp(self) -> tuple[np.ndarray, float]:
        return self.object_position, wrap_angle(yaw_of(self.object_axes), np.pi / 2, HOME_YAW)

    def carry(self) -> tuple[np.ndarray, float]:
        table = self.env.model.mujoco_arena.table_offset[2]
        return np.array([0.0, 0.0, table + self.height + 0.03 - self.object_position[2]]), 0.0


class CanExpert(ScriptedExpert):
    """An expert that carries a can from one bin to its compartment of the other bin."""

    speeds: ClassVar = (0.75, 0.97)
    heights: ClassVar = (0.085, 0.12)  # higher than the walls, from any position of the can
    offsets: ClassVar = (0.003, 0.006, 0.007)
    yaw_range: ClassVar = 0.4

    def __init__(self, env: Any, rng: np.random.Generator):
        super().__init__(env, rng)
        self.goal = env.target_bin_placements[env.object_id] + [0.0, 0.0, rng.uniform(0.08, 0.11)]
        # The release position is in the corner of the compartment that the arm can reach.
        self.goal[:2] += rng.uniform([-0.07, -0.055], [-0.03, -0.02])

    def target_object(self) -> Any:
        return self.env.objects[self.env.object_id]

    def grasp(self) -> tuple[np.ndarray, float]:
        if abs(self.object_axes[2, 2]) > 0.7:  # The can stands and can be grasped at any yaw.
            # The grasp is above the centre, so that the palm does not touch the top.
            return self.object_position + [0, 0, 0.023], np.pi if self.is_near_wall() else HOME_YAW
        yaw = yaw_of(self.object_axes[:, [2]]) + np.pi / 2  # across the axis of the lying can
        return self.object_position, wrap_angle(yaw, np.pi, CENTRAL_YAW)

    def is_near_wall(self) -> bool:
        """Return whether a bin wall leaves no room for fingers on both sides of the object in y."""
        first, second = self.env.bin1_pos[1], self.env.bin2_pos[1]
        half = 0.25  # m, half the width of a bin; the second bin also has a wall in its middle
        walls = [first - half, first + half, second - half, second, second + half]
        return bool(np.abs(self.object_position[1] - np.array(walls)).min() < 0.075)

    def carry(self) -> tuple[np.ndarray, float]:
        return self.travel(self.object_position, self.goal, 0.0, self.height, 0.03)

    def may_release(self) -> bool:
        error = np.abs(self.goal - self.object_position)
        return bool((error < [0.03, 0.03, 0.015]).all())

    def is_finished(self) -> bool:
        return not self.env.not_in_bin(self.object_position, self.env.object_id)


class SquareExpert(ScriptedExpert):
    """An expert that puts a square nut over the square peg."""

    offsets: ClassVar = (0.003, 0.005, 0.002)

    def __init__(self, env: Any, rng: np.random.Generator):
        super().__init__(env, rng)
        peg = env.sim.data.body_xpos[env.peg1_body_id]
        self.goal = np.array([peg[0], peg[1], rng.uniform(0.88, 0.905)])
        self.top = peg[2] + 0.1 + rng.uniform(0.03, 0.06)

    def target_object(self) -> Any:
        return self.env.nuts[self.env.nut_id]

    def grasp(self) -> tuple[np.ndarray, float]:
        # The grasp is far out on the handle, so that the hand does not touch the peg.
        point = self.object_position + self.object_axes @ [0.061, 0, 0] + [0, 0, 0.003]
        return point, wrap_angle(yaw_of(self.object_axes) + np.pi / 2, np.pi, CENTRAL_YAW)

    def carry(self) -> tuple[np.ndarray, float]:
        # The sides of the peg are parallel to the axes, so three orientations fit. The handle must
        # not point away from the arm, because it would then be out of reach.
        yaw = wrap_angle(yaw_of(self.object_axes), 2 * np.pi, np.pi)
        turn = np.clip(np.round(yaw / (np.pi / 2)), 1, 3) * np.pi / 2 - yaw
        goal = self.goal if self.is_level() else NUT_PARKING_POSITION
        return self.travel(self.object_position, goal, float(turn), self.top - goal[2], 0.005)

    def may_release(self) -> bool:
        goal = self.goal if self.is_level() else NUT_PARKING_POSITION
        error = np.abs(goal - self.object_position)
        return bool((error < [0.01, 0.01, 0.008]).all())

    def is_level(self) -> bool:
        """Return whether the nut is level; a tilted nut is put down and grasped again."""
        return abs(self.object_axes[2, 2]) > 0.9

    def is_finished(self) -> bool:
        return bool(self.env.on_peg(self.object_position, 0))


EXPERTS: dict[str, type[ScriptedExpert]] = {
    "Lift": LiftExpert,
    "Can": CanExpert,
    "Square": SquareExpert,
}


def wrap_angle(angle: float, period: float, centre: float) -> float:
    """Return `angle` shifted by whole periods to within half a period of `centre`."""
    return float(centre + (angle - centre + period / 2) % period - period / 2)


def yaw_of(axes: np.ndarray) -> float:
    """Return the yaw (rad) of the first column of `axes` (3, n)."""
    return float(np.arctan2(axes[1, 0], axes[0, 0]))


def clip_norm(vector: np.ndarray, limit: float) -> np.ndarray:
    """Return `vector`, scaled down to norm `limit` if it is longer."""
    return vector * min(1.0, limit / max(float(np.linalg.norm(vector)), 1e-9))
