"""Encoders of camera images, whose features extend the low-dimensional observation.

Each camera has a convolutional network, or all share one. The features are the image positions at
which its filters respond (spatial softmax, Levine et al. 2016), as in Mandlekar et al. 2021, "What
Matters in Learning from Offline Human Demonstrations", and Chi et al. 2023, "Diffusion Policy".
Shapes: B batch, To observations, C cameras, H x W pixels, K keypoints, N images.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebt_policy.errors import ConfigError
from ebt_policy.io.paths import reason
from ebt_policy.models.timm_features import check_timm_model, import_timm
from ebt_policy.policies.augmentation import Augmentation, AugmentationConfig

GROUP_SIZE = 16  # channels in a group of group normalisation, as in Diffusion Policy


@dataclass(frozen=True)
class VisionConfig(AugmentationConfig):
    """Encoder of camera images, the section ``vision`` of a configuration.

    Args:
        backbone: name of a timm model, trained with the policy.
        pretrained: start from timm's weights. Their batch normalisation then stays, with fixed
            statistics and scales. Otherwise group normalisation replaces it, because averaged
            weights and batch statistics do not match.
        stage: index of the backbone's feature map to read, -1 for the last; later layers are not
            built.
        crop: fraction of height and width to crop, at a random position in training and at the
            centre at inference.
        downsample: side of the blocks of pixels that are averaged; 1 for none.
        keypoints: K, the number of keypoints of each camera.
        shared: one encoder for all cameras instead of one for each; they must have equal sizes.

    Further options are the random changes of the images in training, see `AugmentationConfig`.

    Raises:
        ConfigError: timm is not installed, the backbone is unknown, or a value is out of range.
    """

    backbone: str = "resnet18"
    pretrained: bool = False
    stage: int = -1
    crop: float = 0.875
    downsample: int = 1
    keypoints: int = 32
    shared: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.crop <= 1:
            raise ConfigError(f"vision.crop must be above 0 and at most 1, got {self.crop}.")
        if min(self.downsample, self.keypoints) < 1:
            raise ConfigError(
                f"vision.downsample and vision.keypoints must be at least 1, got {self.downsample} "
                f"and {self.keypoints}."
            )
        check_timm_model(self.backbone, "vision.backbone")


class VisionEncoder(nn.Module):
    """Encoder of the images of all cameras into features of each time step.

    Args:
        cameras: name -> [H, W].
        config: see `VisionConfig`.

    Raises:
        ConfigError: the encoder is shared, but the cameras have different sizes.
    """

    def __init__(self, cameras: dict[str, list[int]], config: VisionConfig) -> None:
        super().__init__()
        self.config, self.cameras = config, list(cameras)
        sizes = list(cameras.values())
        if config.shared and any(list(size) != list(sizes[0]) for size in sizes):
            raise ConfigError(
                f"vision.shared=true needs cameras of equal sizes, got {cameras}; set "
                "vision.shared=false."
            )
        count = 1 if config.shared else len(sizes)
        self.eyes = nn.ModuleList(CameraEncoder(size, config) for size in sizes[:count])
        self.num_features = 2 * config.keypoints * len(cameras)
        self.augment = Augmentation(config) if config.is_active else None

    def sample_crop(self, like: Tensor) -> Tensor:
        """Sample positions of crops, (B, C, 2) in [0, 1), for observations ``like`` (B, ...)."""
        return torch.rand(len(like), len(self.cameras), 2, device=like.device)

    def forward(self, images: dict[str, Tensor], crop: Tensor | None) -> Tensor:
        """Encode images.

        Args:
            images: camera name -> (B, To, H, W, 3) uint8.
            crop: positions of crops, as `sample_crop` returns them; None for the centre.

        Returns:
            (B, To, 2 K C).
        """
        positions = [None] * len(self.cameras) if crop is None else crop.unbind(dim=1)
        encoders = list(self.eyes) * (len(self.cameras) if self.config.shared else 1)
        features = [
            encoder(images[name], position)
            for name, encoder, position in zip(self.cameras, encoders, positions, strict=True)
        ]
        return torch.cat(features, dim=-1)

    def load_pretrained(self) -> None:
        """Load timm's weights if ``pretrained`` is set; not needed before loading a checkpoint.

        Raises:
            ConfigError: this backbone has no weights, or the download failed.
        """
        if not self.config.pretrained:
            return
        weights = make_backbone(self.config, download=True).state_dict()
        for encoder in self.eyes:
            encoder.get_submodule("backbone").load_state_dict(weights)


class CameraEncoder(nn.Module):
    """Encoder of one camera: crop, downsample, backbone, spatial softmax."""

    def __init__(self, size: list[int], config: VisionConfig) -> None:
        super().__init__()
        self.size, self.downsample = size, config.downsample
        self.window = [max(1, round(config.crop * side)) for side in size]
        self.backbone = make_backbone(config)
        smallest = torch.zeros(1, 3, *(max(1, side // config.downsample) for side in self.window))
        with torch.no_grad():
            try:
                channels = self.backbone(smallest)[0].shape[1]
            except (RuntimeError, AssertionError) as error:
                raise ConfigError(
                    f"vision.backbone={config.backbone} cannot take images of "
                    f"{' x '.join(map(str, smallest.shape[2:]))} pixels "
                    f"({str(error).splitlines()[0].rstrip('.')}); choose another backbone, or "
                    "change vision.crop or vision.downsample."
                ) from error
        # No bias, because it would cancel in the softmax.
        self.read = nn.Conv2d(channels, config.keypoints, 1, bias=False)

    def forward(self, images: Tensor, position: Tensor | None) -> Tensor:
        """Encode images (B, To, H, W, 3) uint8 to (B, To, 2 K); ``position`` is as in `crop`."""
        x = crop(images, self.window, position)
        x = x.flatten(0, 1).permute(0, 3, 1, 2).float()
        if self.downsample > 1:
            x = F.avg_pool2d(x, self.downsample)
        x = x / 127.5 - 1.0
        points = spatial_softmax(self.read(self.backbone(x)[0]))
        return points.unflatten(0, images.shape[:2])


def crop(images: Tensor, window: list[int], position: Tensor | None) -> Tensor:
    """Crop images, at the same position in all To images of a row.

    Args:
        images: (B, To, H, W, 3).
        window: [h, w], at most [H, W].
        position: (B, 2) in [0, 1), vertical and horizontal; uniform values give each pixel the
            same probability. None for the centre.

    Returns:
        (B, To, h, w, 3).
    """
    spare = [side - size for side, size in zip(images.shape[2:4], window, strict=True)]
    if position is None:
        top, left = (n // 2 for n in spare)
        return images[:, :, top : top + window[0], left : left + window[1]]
    top, left = ((position[:, i] * (n + 1)).long().clamp(max=n) for i, n in enumerate(spare))
    # A view of all windows: (B, To, tops, lefts, 3, h, w).
    windows = images.unfold(2, window[0], 1).unfold(3, window[1], 1)
    batch = torch.arange(len(images), device=images.device)
    return windows[batch, :, top, left].permute(0, 1, 3, 4, 2)


def spatial_softmax(responses: Tensor) -> Tensor:
    """Return mean positions (N, 2 K) in [-1, 1], first x and then y, of responses (N, K, h, w)."""
    h, w = responses.shape[2:]
    share = responses.flatten(2).softmax(dim=-1).view_as(responses)
    x, y = (torch.linspace(-1.0, 1.0, n, device=share.device) for n in (w, h))
    return torch.cat([(share.sum(2) * x).sum(-1), (share.sum(3) * y).sum(-1)], dim=-1)


def make_backbone(config: VisionConfig, *, download: bool = False) -> nn.Module:
    """Build a timm model up to one feature map: (N, 3, h, w) -> [(N, channels, h', w')].

    Args:
        download: load timm's weights instead of random ones.

    Raises:
        ConfigError: the backbone has no such feature map, or the download failed.
    """
    timm = import_timm()
    try:
        backbone = timm.create_model(
            config.backbone, pretrained=download, features_only=True, out_indices=(config.stage,)
        )
    except Exception as error:  # errors of timm and its dependencies share no base class
        raise ConfigError(
            f"vision.backbone={config.backbone} cannot be used with vision.stage={config.stage} "
            f"and vision.pretrained={str(config.pretrained).lower()} ({reason(error)})."
        ) from error
    if config.pretrained:
        return timm.layers.freeze_batch_norm_2d(backbone)
    replace_batch_norm(backbone)
    return backbone


def replace_batch_norm(module: nn.Module) -> None:
    """Replace every batch normalisation by group normalisation.

    Averaged weights do not match the statistics of batches.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            norm: nn.Module = nn.GroupNorm(channels // gcd(channels, GROUP_SIZE), channels)
            if hasattr(child, "act"):  # a layer of timm that includes an activation
                norm = nn.Sequential(norm, child.get_submodule("act"))
            setattr(module, name, norm)
        else:
            replace_batch_norm(child)
