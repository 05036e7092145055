"""Random changes of camera images in training, by the library kornia, on the images' device.

Shapes: B batch, To observations, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from ebt_policy.errors import ConfigError

BLUR_SIGMA, BLUR_KERNEL = (0.1, 2.0), (5, 5)
ERASED_AREA = (0.02, 0.1)  # range of the erased fraction of an image


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Random changes of images; 0 disables a change.

    Args:
        brightness, contrast, saturation: largest relative change.
        hue: largest change of the hue, as a fraction of the colour circle, at most 0.5.
        blur, erase: probability that an image is blurred, or that a rectangle of it is erased.

    Raises:
        ConfigError: a value is out of range, or kornia is not installed.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    blur: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        for name, value in self.changes.items():
            largest = 0.5 if name == "hue" else 1.0
            if not 0 <= value <= largest:
                raise ConfigError(f"vision.{name} must be between 0 and {largest:g}, got {value}.")
        if self.is_active:
            _kornia()

    @property
    def changes(self) -> dict[str, float]:
        """The options of the changes by name."""
        return {field.name: getattr(self, field.name) for field in fields(AugmentationConfig)}

    @property
    def is_active(self) -> bool:
        """Whether images are changed."""
        return any(self.changes.values())


class Augmentation:
    """Random changes of images, the same for all To images of a row.

    Args:
        config: the changes.
    """

    def __init__(self, config: AugmentationConfig) -> None:
        kornia = _kornia()
        color = (config.brightness, config.contrast, config.saturation, config.hue)
        changes = [
            *([kornia.ColorJiggle(*color, p=1.0)] if any(color) else []),
            *([kornia.RandomGaussianBlur(BLUR_KERNEL, BLUR_SIGMA, p=config.blur)]
              if config.blur else []),
            *([kornia.RandomErasing(ERASED_AREA, p=config.erase)] if config.erase else []),
        ]  # fmt: skip
        self._change = kornia.VideoSequential(*changes, data_format="BTCHW", same_on_frame=True)

    def __call__(self, images: Tensor) -> Tensor:
        """Return changed images (B, To, H, W, 3) uint8; draws from PyTorch's generator."""
        x = images.permute(0, 1, 4, 2, 3).float() / 255
        x = self._change(x).clamp(0, 1) * 255
        return x.round().to(images.dtype).permute(0, 1, 3, 4, 2)


def _kornia() -> Any:
    try:
        import kornia.augmentation
    except ImportError as error:
        raise ConfigError(
            "changes of images need kornia; run pip install 'ebt_policy[vision]', or set "
            "vision.brightness, contrast, saturation, hue, blur and erase to 0."
        ) from error
    return kornia.augmentation
