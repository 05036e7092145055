"""Image models that denoise images, or generate images from noise."""

from ebt_policy.image.baselines import DiT, ImageRefiner
from ebt_policy.image.model import IMAGE_MODELS, EnergyImageModel, build_image_model

__all__ = ["IMAGE_MODELS", "DiT", "EnergyImageModel", "ImageRefiner", "build_image_model"]
