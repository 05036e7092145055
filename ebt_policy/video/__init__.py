"""Video models in feature space, and encoders of frames to features."""

from ebt_policy.video.autoencoder import Autoencoder
from ebt_policy.video.baselines import VideoRefiner, VideoTransformerPP
from ebt_policy.video.model import VIDEO_MODELS, EnergyVideoModel, build_video_model

__all__ = [
    "VIDEO_MODELS",
    "Autoencoder",
    "EnergyVideoModel",
    "VideoRefiner",
    "VideoTransformerPP",
    "build_video_model",
]
