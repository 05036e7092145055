"""Pretrained image models of timm, an optional dependency.

Shapes: N images, h x w pixels.
"""

from __future__ import annotations

from difflib import get_close_matches
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebt_policy.errors import ConfigError
from ebt_policy.io.paths import reason


class TimmFeatures(nn.Module):
    """Pretrained model of timm, such as DINOv2: images (N, 3, h, w) in [0, 1] -> (N, features).

    Args:
        name: name of the model. Images are resized and normalised as in its training.

    Raises:
        ConfigError: if the name is unknown, or the model cannot be downloaded or loaded.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        timm = check_timm_model(name, "task.features=timm:NAME")
        try:
            self.backbone = timm.create_model(name, pretrained=True, num_classes=0)
            data_config = timm.data.resolve_model_data_config(self.backbone)
            if data_config["input_size"][0] != 3:
                raise ValueError(
                    f"it takes images of {data_config['input_size'][0]} channels, not 3"
                )
        except Exception as error:  # errors of timm and its dependencies share no base
            raise ConfigError(f"timm's model {name} cannot be loaded ({reason(error)}).") from error
        self.size = data_config["input_size"][1:]
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(data_config["mean"]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(data_config["std"]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        resized = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        return self.backbone((resized - self.mean) / self.std)


def check_timm_model(name: str, option: str) -> ModuleType:
    """Return timm after checking that it has a model of this name.

    The name may come from a checkpoint. Names such as ``hf-hub:NAME`` would load files that anybody
    published, so they are refused.

    Args:
        name: name of the model.
        option: option that contains the name, for the message.

    Raises:
        ConfigError: if timm is not installed, or has no such model.
    """
    timm = import_timm()
    if not timm.is_model(name):
        suggestions = get_close_matches(name, timm.list_models())
        hint = (
            f"did you mean {', '.join(suggestions)}?"
            if suggestions
            else "for example, use resnet18."
        )
        raise ConfigError(f"{option}: {name} is not a model of timm {timm.__version__}; {hint}")
    return timm


def import_timm() -> ModuleType:
    """Import and return timm.

    Raises:
        ConfigError: if timm is not installed.
    """
    try:
        import timm
        import timm.layers
    except ImportError as error:
        raise ConfigError(
            "images need timm, which is not installed: pip install 'ebt_policy[vision]'."
        ) from error
    return timm
