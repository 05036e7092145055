"""The core: one energy transformer, one descent loop, and the objectives that shape a landscape.

Nothing here knows of robots, environments, configuration or logging; it imports torch alone.
"""

from ebt_policy.energy.descent import DescentError, DescentResult, MirrorMap, descend
from ebt_policy.energy.objectives import OBJECTIVES, Objective
from ebt_policy.energy.replay_buffer import ReplayBuffer
from ebt_policy.energy.two_stream import TwoStreamTransformer

__all__ = [
    "OBJECTIVES",
    "DescentError",
    "DescentResult",
    "MirrorMap",
    "Objective",
    "ReplayBuffer",
    "TwoStreamTransformer",
    "descend",
]
