"""Training objectives of a landscape, one per file. All of them train through `Descent`."""

from ebt_policy.energy.objectives.base import Objective, ObjectiveFactory
from ebt_policy.energy.objectives.contrastive import Contrastive, info_nce
from ebt_policy.energy.objectives.ebt_policy import EBTPolicy
from ebt_policy.energy.objectives.equilibrium import Equilibrium
from ebt_policy.energy.objectives.flow import Flow
from ebt_policy.energy.objectives.s1 import S1
from ebt_policy.energy.objectives.s2 import S2

__all__ = [
    "S1",
    "S2",
    "Contrastive",
    "EBTPolicy",
    "Equilibrium",
    "Flow",
    "Objective",
    "ObjectiveFactory",
    "info_nce",
]
