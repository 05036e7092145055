"""Clearance of the links of an arm of two links, each 1 m long."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from tiny_policies import build, generators, observe

from ebt_policy.errors import ConfigError
from ebt_policy.policies import ChunkConstraints
from ebt_policy.policies.costs import build_costs

# The module is not imported here: environments select the backend that renders first.
if importlib.util.find_spec("mujoco") is None:
    pytest.skip("needs MuJoCo", allow_module_level=True)
ARM = """
<mujoco>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 0.1" pos="0 0 -1"/>
    <body name="upper">
      <joint name="shoulder" type="hinge" axis="0 0 1"/>
      <geom type="capsule" fromto="0 0 0 1 0 0" size="0.05"/>
      <body name="lower" pos="1 0 0">
        <joint name="elbow" type="hinge" axis="0 0 1"/>
        <geom type="capsule" fromto="0 0 0 1 0 0" size="0.05"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""


@pytest.fixture
def arm(tmp_path):
    path = tmp_path / "arm.xml"
    path.write_text(ARM)
    return str(path)


def clearance(arm, *obstacles, **options):
    section = {
        "name": "arm_clearance", "model": arm, "joints": ["shoulder", "elbow"],
        "obstacles": [list(ball) for ball in obstacles], "softness": 0.1, **options,
    }  # fmt: skip
    (cost,) = build_costs([section], "robot.costs")
    return cost


def chunk(*positions):
    return torch.tensor(positions, dtype=torch.float32)[None, None]


def test_depth_of_a_ball_beside_each_link(arm):
    straight = chunk([0.0, 0.0])
    for x in (0.5, 1.5):  # beside the upper and the lower link
        beside = clearance(arm, (x, 0.3, 0, 0.1), points=1)
        assert float(beside(straight, {})) == 0
        # The surfaces are 0.15 m apart, 0.05 m less than the margin, which is half the softness.
        close = clearance(arm, (x, 0.3, 0, 0.1), margin=0.2, points=1)
        assert float(close(straight, {})) == pytest.approx(0.25, rel=1e-3)
    inside = clearance(arm, (0.5, 0.0, 0, 0.1), points=1)
    assert float(inside(straight, {})) > 1
    folded = chunk([0.0, math.pi / 2])  # the lower link points up
    assert float(clearance(arm, (1.5, 0.0, 0, 0.1))(folded, {})) == 0


def test_the_path_between_actions_and_every_candidate_count(arm):
    ball = (math.sqrt(0.5), math.sqrt(0.5), 0, 0.05)  # at 45 degrees
    across = torch.tensor([[[[0.0, 0.0], [math.pi / 2, 0.0]], [[0.0, 0.0], [-1.0, 0.0]]]])
    assert clearance(arm, ball, points=1)(across, {}).tolist() == [[0.0, 0.0]]
    between = clearance(arm, ball, points=2)(across, {})
    assert between.shape == (1, 2) and between[0, 0] > 0 and between[0, 1] == 0


def test_a_policy_selects_a_free_chunk(arm):
    policy, obs = build("flow"), observe(1)
    policy.configure_inference(num_candidates=4)
    low, high = policy.normalizer.unnormalize("action", torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))

    class InRadians:
        """The cost of actions that are scaled to half a turn."""

        def __init__(self, cost):
            self.cost = cost

        def __call__(self, chunks, obs):
            return self.cost((chunks - low) / (high - low) * math.pi, obs)

    cost = InRadians(clearance(arm, (0.0, 1.6, 0, 0.1)))
    alone = policy.predict_chunk(obs, generator=generators(0))
    constraints = ChunkConstraints(costs=[cost], max_rounds=3)
    chosen = policy.predict_chunk(obs, constraints=constraints, generator=generators(0))
    before = cost(alone.actions[:, None, 1:], obs)[0, 0]
    assert chosen.cost is not None and float(chosen.cost) <= float(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "missing.xml"}, "model=missing.xml does not exist"),
        ({"joints": ["shoulder", "wrist"]}, "has no hinge or slide joint wrist"),
        ({"obstacles": [[]]}, "an obstacle must be"),
        ({"obstacles": [[0, 0, 1]]}, "an obstacle must be"),
        ({"obstacles": [[0, 0, 0, -1.0]]}, "an obstacle must be"),
        ({"points": 0}, "points must be at least 1"),
    ],
)
def test_wrong_options(arm, options, message):
    with pytest.raises(ConfigError, match=message):
        clearance(arm, (0, 0, 0, 1), **options)


def test_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "arm.xml"
    path.write_text("<mujoco><worldbody>")
    with pytest.raises(ConfigError, match="is not a MuJoCo or URDF model"):
        clearance(str(path), (0, 0, 0, 1))
