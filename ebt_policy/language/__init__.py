"""Text models that predict the next token or masked tokens."""

from ebt_policy.language.baselines import Bert, Refiner, TransformerPP
from ebt_policy.language.masked_lm import MaskedEnergyModel
from ebt_policy.language.model import LANGUAGE_MODELS, EnergyLanguageModel, build_language_model

__all__ = [
    "LANGUAGE_MODELS",
    "Bert",
    "EnergyLanguageModel",
    "MaskedEnergyModel",
    "Refiner",
    "TransformerPP",
    "build_language_model",
]
