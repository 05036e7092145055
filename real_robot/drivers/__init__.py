"""Robot drivers with one interface (`base.Driver`). The import registers the built-in drivers."""

from ebt_policy.real_robot.drivers import replay, ros2, sim
from ebt_policy.real_robot.drivers.base import ROBOT_DRIVERS

__all__ = ["ROBOT_DRIVERS", "replay", "ros2", "sim"]
