"""Scripted experts for robosuite's Lift, Can and Square with a single Panda.

Each decides anew from the simulator's state at every call, without a clock: an object that slips or
is moved away is approached again, so that demonstrations may contain retries. How an expert moves
(speed, height, bend, grasp, where it lets go) is drawn once for each episode, so that a set of
demonstrations is a distribution and not one path.

The actions are those of robosuite's BASIC controller: OSC_POSE deltas in the base frame, which is
the world's but for its origin, 0.05 m and 0.5 rad to 1, and the gripper, -1 open and 1 closed.
Lengths are metres, angles radians, vectors the world's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

METRE, RADIAN = 1 / 0.05, 1 / 0.5  # a unit of displacement as an action
# Finger yaws are kept within half a turn of this one: the last joint is far from its stops there.
MIDDLE = np.pi / 2 + 0.35
HOME = np.pi / 2  # finger yaw at which the arm starts
SMOOTHING = 0.3  # how much of the last motion remains in the next
NOISE = 0.03  # standard deviation of the noise in an action
LEVER = 0.05  # m of misplacement that a radian of wrong yaw counts for
# The arm cannot point straight down at its full reach: from this far from its base on, in m, the
# hand leans outward, by so many radians to the metre.
FAR, LEAN = 0.68, 1.8
STRAIGHT = -0.25  # rad, above it an elbow is that of an arm pushed to its full length
NEAR = 0.05  # m, distance at which a motion begins to slow down
ASIDE = np.array([-0.05, 0.15, 0.865])  # where on the table a nut is laid down
OPEN, STILL = 0.065, 0.02  # m between the fingers; m/s at which they count as at rest


class Expert(ABC):
    """What the experts share: approach an object, grasp it, carry it along an arch, let go, rise.

    Calling it gives the next action, (7,) float64 in [-1, 1]; call it once before each step.

    Args:
        env: the robosuite environment, after its reset.
        rng: draws the style of the episode and the noise.
    """

    speeds: ClassVar = (0.6, 0.95)  # range of the action's length in free motion
    heights: ClassVar = (0.07, 0.12)  # m, range of how far above the grasp the approach passes
    offsets: ClassVar = (0.003, 0.005, 0.004)  # m, range of the grasp: across, along, up
    twist: ClassVar = 0.1  # rad, range of the grasp's yaw

    def __init__(self, env: Any, rng: np.random.Generator):
        self.env, self.rng = env, rng
        self.speed = rng.uniform(*self.speeds)
        self.bend = rng.uniform(-0.4, 0.4)
        self.height = rng.uniform(*self.heights)
        self.offset = rng.uniform(-1, 1, 3) * self.offsets
        self.turn = rng.uniform(-1, 1) * self.twist
        self.motion = np.zeros(6)
        self.releasing = False

    def __call__(self) -> np.ndarray:
        self.look()
        held = self.held()
        if held and self.placed():
            self.releasing = True
        if self.opening > OPEN:
            self.releasing = False
        if self.releasing:  # until the fingers are open: what falls is not to be caught again
            return self.act(np.zeros(3), 0.0, -1.0)
        if held:
            return self.act(*self.carry(), 1.0)
        if self.done():
            up = max(0.0, self.place[2] + self.height + 0.05 - self.hand[2])
            return self.act(np.array([0.0, 0.0, up]), 0.0, -1.0)
        return self.pick()

    def look(self) -> None:
        """Read the state: the hand's position, rotation, finger yaw and opening, the object."""
        data, robot = self.env.sim.data, self.env.robots[0]
        site, gripper = robot.eef_site_id["right"], robot.gripper["right"]
        self.hand = data.site_xpos[site].copy()
        self.rotation = data.site_xmat[site].reshape(3, 3).copy()
        self.yaw = nearest(np.arctan2(*self.rotation[1::-1, 0]), 2 * np.pi, MIDDLE)
        self.out = self.hand[:2] - robot.base_pos[:2]
        self.elbow = float(data.qpos[robot.joint_indexes[3]])
        left, right = gripper.joints
        self.opening = float(data.get_joint_qpos(left) - data.get_joint_qpos(right))
        self.closing = float(data.get_joint_qvel(right) - data.get_joint_qvel(left))
        body = self.env.sim.model.body_name2id(self.thing().root_body)
        self.place = data.body_xpos[body].copy()
        self.axes = data.body_xmat[body].reshape(3, 3).copy()  # columns are the object's axes

    def held(self) -> bool:
        """Whether both finger pads press on the object."""
        gripper = self.env.robots[0].gripper
        touched = self.env._check_grasp(gripper=gripper, object_geoms=self.thing())
        return bool(touched) and abs(self.closing) < STILL

    def pick(self) -> np.ndarray:
        """Go to the grasp with open fingers, from above; close them on what is between them."""
        point, yaw = self.grasp()
        goal = point + self.nominal(yaw) @ (self.offset * [1, 1, -1])
        yaw = nearest(yaw + self.turn, 2 * np.pi, MIDDLE)
        turn = yaw - self.yaw
        miss = np.abs(self.rotation.T @ (goal - self.hand))
        between = (miss < [0.015, 0.01, 0.008]).all() and abs(turn) < 0.15
        step, turn = self.travel(self.hand, goal, turn, self.height, 0.008)
        return self.act(step, turn, 1.0 if between else -1.0)

    def travel(
        self, here: np.ndarray, goal: np.ndarray, turn: float, height: float, tolerance: float
    ) -> tuple[np.ndarray, float]:
        """Displacement (3,) and turn from `here` toward `goal`, from `height` above it.

        It sinks below that height only within `tolerance` of the vertical over the goal, and moves
        sideways only as far as it is not below the height it should have.
        """
        side = goal[:2] - here[:2]
        miss = np.linalg.norm(side) + LEVER * abs(turn)
        above = height * np.clip((miss - tolerance) / (1.5 * tolerance), 0, 1)
        climb = goal[2] + above - here[2]
        free = np.clip(1 - climb / NEAR, 0, 1)
        side = shorten(side + self.bend * np.array([-side[1], side[0]]), NEAR)
        return np.array([*(free * side), np.clip(climb, -NEAR, NEAR)]), free * turn

    def act(self, step: np.ndarray, turn: float, grip: float) -> np.ndarray:
        """The action (7,) for a displacement (3,), a turn about the vertical and a grip.

        Whatever the turn, the hand is brought to point down.
        """
        wanted = self.nominal(self.yaw + np.clip(turn, -1, 1))
        rotation = Rotation.from_matrix(wanted @ self.rotation.T).as_rotvec()
        if self.elbow > STRAIGHT:  # it would stay so, however long the way to go: pull it back
            step = np.append(-self.out, 0.0)
        motion = [
            *shorten(step * METRE, self.speed),
            *shorten(rotation * RADIAN, 0.5 * self.speed),
        ]
        self.motion = SMOOTHING * self.motion + (1 - SMOOTHING) * np.array(motion)
        noisy = self.motion + self.rng.normal(0, NOISE, 6)
        return np.clip([*noisy, grip], -1, 1)

    def nominal(self, yaw: float) -> np.ndarray:
        """Rotation (3, 3) of a hand here that points down, its fingers in line with `yaw`."""
        reach = float(np.linalg.norm(self.out))
        lean = max(0.0, reach - FAR) * LEAN / reach * np.array([self.out[1], -self.out[0], 0.0])
        c, s = np.cos(yaw), np.sin(yaw)
        down = np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])
        return Rotation.from_rotvec(lean).as_matrix() @ down

    @abstractmethod
    def thing(self) -> Any:
        """The robosuite object to handle."""

    @abstractmethod
    def grasp(self) -> tuple[np.ndarray, float]:
        """Where to grasp, (3,), and the yaw of the line between the fingers."""

    @abstractmethod
    def carry(self) -> tuple[np.ndarray, float]:
        """Displacement (3,) and turn while the object is held."""

    def placed(self) -> bool:
        """Whether the object, held, may be let go."""
        return False

    def done(self) -> bool:
        """Whether the object, not held, may be left where it is."""
        return False


class Lift(Expert):
    """Lift a cube off the table."""

    speeds: ClassVar = (0.4, 0.7)
    offsets: ClassVar = (0.003, 0.006, 0.004)

    def thing(self) -> Any:
        return self.env.cube

    def grasp(self) -> tuple[np.ndarray, float]:
        return self.place, nearest(heading(self.axes), np.pi / 2, HOME)

    def carry(self) -> tuple[np.ndarray, float]:
        table = self.env.model.mujoco_arena.table_offset[2]
        return np.array([0.0, 0.0, table + self.height + 0.03 - self.place[2]]), 0.0


class Can(Expert):
    """Carry a can from one bin to its compartment of the other."""

    speeds: ClassVar = (0.75, 0.97)
    heights: ClassVar = (0.085, 0.12)  # over the walls, wherever the can is
    offsets: ClassVar = (0.003, 0.006, 0.007)
    twist: ClassVar = 0.4

    def __init__(self, env: Any, rng: np.random.Generator):
        super().__init__(env, rng)
        self.goal = env.target_bin_placements[env.object_id] + [0.0, 0.0, rng.uniform(0.08, 0.11)]
        self.goal[:2] += rng.uniform([-0.07, -0.055], [-0.03, -0.02])  # the corner it can reach

    def thing(self) -> Any:
        return self.env.objects[self.env.object_id]

    def grasp(self) -> tuple[np.ndarray, float]:
        if abs(self.axes[2, 2]) > 0.7:  # it stands: any yaw will do
            # The palm has to clear its top.
            return self.place + [0, 0, 0.023], np.pi if self.cramped() else HOME
        return self.place, nearest(heading(self.axes[:, [2]]) + np.pi / 2, np.pi, MIDDLE)

    def cramped(self) -> bool:
        """Whether a wall is in the way of fingers on both sides in y."""
        first, second = self.env.bin1_pos[1], self.env.bin2_pos[1]
        half = 0.25  # of a bin's width; the second has a wall in its middle, too
        walls = [first - half, first + half, second - half, second, second + half]
        return bool(np.abs(self.place[1] - np.array(walls)).min() < 0.075)

    def carry(self) -> tuple[np.ndarray, float]:
        return self.travel(self.place, self.goal, 0.0, self.height, 0.03)

    def placed(self) -> bool:
        off = np.abs(self.goal - self.place)
        return bool((off < [0.03, 0.03, 0.015]).all())

    def done(self) -> bool:
        return not self.env.not_in_bin(self.place, self.env.object_id)


class Square(Expert):
    """Put a square nut over the square peg."""

    offsets: ClassVar = (0.003, 0.005, 0.002)

    def __init__(self, env: Any, rng: np.random.Generator):
        super().__init__(env, rng)
        peg = env.sim.data.body_xpos[env.peg1_body_id]
        self.goal = np.array([peg[0], peg[1], rng.uniform(0.88, 0.905)])
        self.top = peg[2] + 0.1 + rng.uniform(0.03, 0.06)

    def thing(self) -> Any:
        return self.env.nuts[self.env.nut_id]

    def grasp(self) -> tuple[np.ndarray, float]:
        # Out on the handle, for the hand to stay clear of the peg.
        point = self.place + self.axes @ [0.061, 0, 0] + [0, 0, 0.003]
        return point, nearest(heading(self.axes) + np.pi / 2, np.pi, MIDDLE)

    def carry(self) -> tuple[np.ndarray, float]:
        # The peg's sides lie along the axes. The handle may point anywhere but away from the arm,
        # where it would be out of reach.
        yaw = nearest(heading(self.axes), 2 * np.pi, np.pi)
        turn = np.clip(np.round(yaw / (np.pi / 2)), 1, 3) * np.pi / 2 - yaw
        goal = self.goal if self.level() else ASIDE
        return self.travel(self.place, goal, float(turn), self.top - goal[2], 0.005)

    def placed(self) -> bool:
        off = np.abs((self.goal if self.level() else ASIDE) - self.place)
        return bool((off < [0.01, 0.01, 0.008]).all())

    def level(self) -> bool:
        """Whether the nut fits over the peg; held askew, it is laid down and grasped anew."""
        return abs(self.axes[2, 2]) > 0.9

    def done(self) -> bool:
        return bool(self.env.on_peg(self.place, 0))


EXPERTS: dict[str, type[Expert]] = {"Lift": Lift, "Can": Can, "Square": Square}


def nearest(angle: float, period: float, centre: float) -> float:
    """The angle nearest to `centre` among those that differ from `angle` by whole periods."""
    return float(centre + (angle - centre + period / 2) % period - period / 2)


def heading(axes: np.ndarray) -> float:
    """Yaw of the first column of `axes`, (3, n)."""
    return float(np.arctan2(axes[1, 0], axes[0, 0]))


def shorten(vector: np.ndarray, limit: float) -> np.ndarray:
    """`vector`, or one along it of length `limit` where it is longer."""
    return vector * min(1.0, limit / max(float(np.linalg.norm(vector)), 1e-9))
