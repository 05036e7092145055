"""The core: one energy transformer, one descent loop, and the objectives that shape a landscape.

It imports only torch. Start with `ebt_policy.energy.descent`. The sign and the scale of energies
are defined in `ebt_policy.energy.energy_function`: a lower energy is better.
"""

from ebt_policy.energy.constraints import CostStep, FrozenEntries, PathProjection, Projection
from ebt_policy.energy.descent import Descent
from ebt_policy.energy.energy_function import BilinearEnergy, DirectUpdate, EnergyFn
from ebt_policy.energy.gradients import PlainGradient, SharedFirstGradient, ZeroInitGradient
from ebt_policy.energy.metropolis import MetropolisLangevin
from ebt_policy.energy.mirror_map import MirrorMap
from ebt_policy.energy.normalization import UnitRootMeanSquare
from ebt_policy.energy.objectives import Objective
from ebt_policy.energy.replay_buffer import ReplayBuffer
from ebt_policy.energy.result import DescentError, DescentResult, StopReason
from ebt_policy.energy.sampling import LangevinNoise
from ebt_policy.energy.schedules import FixedSteps, LevelSchedule, RandomSteps
from ebt_policy.energy.selection import select
from ebt_policy.energy.stopping import (
    FirstOf,
    GradientNorm,
    NeverStop,
    RejectIncreases,
    StraightPath,
)
from ebt_policy.energy.two_stream import TwoStreamTransformer
from ebt_policy.energy.updates import (
    ClippedGradient,
    EnergyScaledStep,
    GradientStep,
    NesterovMomentum,
)

__all__ = [
    "BilinearEnergy",
    "ClippedGradient",
    "CostStep",
    "Descent",
    "DescentError",
    "DescentResult",
    "DirectUpdate",
    "EnergyFn",
    "EnergyScaledStep",
    "FirstOf",
    "FixedSteps",
    "FrozenEntries",
    "GradientNorm",
    "GradientStep",
    "LangevinNoise",
    "LevelSchedule",
    "MetropolisLangevin",
    "MirrorMap",
    "NesterovMomentum",
    "NeverStop",
    "Objective",
    "PathProjection",
    "PlainGradient",
    "Projection",
    "RandomSteps",
    "RejectIncreases",
    "ReplayBuffer",
    "SharedFirstGradient",
    "StopReason",
    "StraightPath",
    "TwoStreamTransformer",
    "UnitRootMeanSquare",
    "ZeroInitGradient",
    "select",
]
