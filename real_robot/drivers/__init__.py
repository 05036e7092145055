"""Robots behind one small interface (`base.Driver`); importing this registers those built in."""

from ebt_policy.real_robot.drivers import replay, ros2, sim
from ebt_policy.real_robot.drivers.base import ROBOT_DRIVERS

__all__ = ["ROBOT_DRIVERS", "replay", "ros2", "sim"]
