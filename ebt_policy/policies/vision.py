"""Sight: what cameras show becomes numbers beside the low-dimensional observation.

A convolutional network a camera, and of its filters the places in the image where they respond
(spatial softmax, Levine et al. 2016), as in Mandlekar et al. 2021, "What Matters in Learning from
Offline Human Demonstrations", and Chi et al. 2023, "Diffusion Policy".
Shapes: B batch, To observations, C cameras, H x W pixels, K keypoints, N images.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from math import gcd
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebt_policy.errors import ConfigError
from ebt_policy.io.paths import reason

GROUP = 16  # channels that group normalisation takes together, as in Diffusion Policy


@dataclass(frozen=True)
class VisionConfig:
    """How a policy sees, the section ``vision`` of a configuration.

    Args:
        backbone: name of a timm model, trained with the policy.
        pretrained: start from timm's weights. They were learned with batch normalisation, which
            then stays, its statistics and scales fixed; else group normalisation takes its place,
            as averaged weights and batch statistics do not go together.
        stage: index of the backbone's feature map that is read, -1 for the last; what comes after
            it is left out.
        crop: share of height and width that is seen, cut at random while training, from the centre
            else.
        shrink: so many pixels, each way, are averaged to one.
        keypoints: K a camera.

    Raises:
        ConfigError: timm is not installed, an unknown backbone, a value out of its range.
    """

    backbone: str = "resnet18"
    pretrained: bool = False
    stage: int = -1
    crop: float = 0.875
    shrink: int = 1
    keypoints: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ConfigError(f"vision.crop must be above 0 and at most 1, got {self.crop}.")
        if min(self.shrink, self.keypoints) < 1:
            raise ConfigError("vision.shrink and vision.keypoints must be at least 1.")
        _check_model(self.backbone, "vision.backbone")


class VisionEncoder(nn.Module):
    """Images of all cameras -> features a time step.

    Args:
        cameras: name -> [H, W].
        how: see `VisionConfig`.
    """

    def __init__(self, cameras: dict[str, list[int]], how: VisionConfig) -> None:
        super().__init__()
        self.how, self.cameras = how, list(cameras)
        self.eyes = nn.ModuleList(CameraEncoder(size, how) for size in cameras.values())
        self.num_features = 2 * how.keypoints * len(cameras)

    def draw(self, like: Tensor) -> Tensor:
        """Where to crop while training, (B, C, 2) in [0, 1), for observations ``like`` (B, ...)."""
        return torch.rand(len(like), len(self.cameras), 2, device=like.device)

    def forward(self, images: dict[str, Tensor], crop: Tensor | None) -> Tensor:
        """Camera name -> (B, To, H, W, 3) uint8, and what `draw` gave -> (B, To, 2 K C)."""
        places = [None] * len(self.cameras) if crop is None else crop.unbind(dim=1)
        seen = [
            eye(images[name], place)
            for name, eye, place in zip(self.cameras, self.eyes, places, strict=True)
        ]
        return torch.cat(seen, dim=-1)

    def load_pretrained(self) -> None:
        """Take over timm's weights where they are asked for; a checkpoint brings its own.

        Raises:
            ConfigError: there are none for this backbone, or they cannot be had.
        """
        if not self.how.pretrained:
            return
        weights = make_backbone(self.how, download=True).state_dict()
        for eye in self.eyes:
            eye.get_submodule("backbone").load_state_dict(weights)


class CameraEncoder(nn.Module):
    """One camera's encoder: crop, shrink, backbone, spatial softmax."""

    def __init__(self, size: list[int], how: VisionConfig) -> None:
        super().__init__()
        self.size, self.shrink = size, how.shrink
        self.window = [max(1, round(how.crop * side)) for side in size]
        self.backbone = make_backbone(how)
        smallest = torch.zeros(1, 3, *(max(1, side // how.shrink) for side in self.window))
        with torch.no_grad():
            try:
                channels = self.backbone(smallest)[0].shape[1]
            except (RuntimeError, AssertionError) as error:
                raise ConfigError(
                    f"vision.backbone={how.backbone} cannot take images of "
                    f"{' x '.join(map(str, smallest.shape[2:]))} pixels "
                    f"({str(error).splitlines()[0].rstrip('.')}); take another, or change "
                    "vision.crop or vision.shrink."
                ) from error
        self.read = nn.Conv2d(channels, how.keypoints, 1, bias=False)  # softmax would cancel it

    def forward(self, images: Tensor, place: Tensor | None) -> Tensor:
        """(B, To, H, W, 3) uint8 and a crop's place (B, 2) in [0, 1), or None -> (B, To, 2 K)."""
        x = crop(images, self.window, place)
        x = x.flatten(0, 1).permute(0, 3, 1, 2).float()
        if self.shrink > 1:
            x = F.avg_pool2d(x, self.shrink)
        x = x / 127.5 - 1.0
        points = spatial_softmax(self.read(self.backbone(x)[0]))
        return points.unflatten(0, images.shape[:2])


def crop(images: Tensor, window: list[int], place: Tensor | None) -> Tensor:
    """Cut a window out of images, the same one in all To images of a row.

    Args:
        images: (B, To, H, W, 3).
        window: [h, w], at most [H, W].
        place: (B, 2) in [0, 1), from the topmost to the lowest place and from the leftmost to the
            rightmost, each pixel equally likely; None for the centre.

    Returns:
        (B, To, h, w, 3).
    """
    spare = [side - part for side, part in zip(images.shape[2:4], window, strict=True)]
    if place is None:
        top, left = (n // 2 for n in spare)
        return images[:, :, top : top + window[0], left : left + window[1]]
    top, left = ((place[:, i] * (n + 1)).long().clamp(max=n) for i, n in enumerate(spare))
    # A view of all windows there are: (B, To, tops, lefts, 3, h, w).
    windows = images.unfold(2, window[0], 1).unfold(3, window[1], 1)
    batch = torch.arange(len(images), device=images.device)
    return windows[batch, :, top, left].permute(0, 1, 3, 4, 2)


def spatial_softmax(responses: Tensor) -> Tensor:
    """Mean place of each response (N, K, h, w), x and y in [-1, 1] -> (N, 2 K)."""
    h, w = responses.shape[2:]
    share = responses.flatten(2).softmax(dim=-1).view_as(responses)
    x, y = (torch.linspace(-1.0, 1.0, n, device=share.device) for n in (w, h))
    return torch.cat([(share.sum(2) * x).sum(-1), (share.sum(3) * y).sum(-1)], dim=-1)


def make_backbone(how: VisionConfig, *, download: bool = False) -> nn.Module:
    """timm's model up to one feature map: (N, 3, h, w) -> [(N, channels, h', w')].

    Args:
        download: with timm's weights instead of random ones.

    Raises:
        ConfigError: a backbone without such feature maps, or weights that cannot be had.
    """
    timm = _timm()
    try:
        backbone = timm.create_model(
            how.backbone, pretrained=download, features_only=True, out_indices=(how.stage,)
        )
    except Exception as error:  # those of timm and of what it stands on share no base
        raise ConfigError(
            f"vision.backbone={how.backbone} cannot be used with vision.stage={how.stage} and "
            f"vision.pretrained={str(how.pretrained).lower()} ({reason(error)})."
        ) from error
    if how.pretrained:
        return timm.layers.freeze_batch_norm_2d(backbone)
    _group_norm(backbone)
    return backbone


class TimmFeatures(nn.Module):
    """A pretrained model of timm, such as DINOv2: images (N, 3, h, w) in [0, 1] -> (N, features).

    Args:
        name: of the model, at the size and in the colours that it was trained for.

    Raises:
        ConfigError: an unknown name, or weights that cannot be had.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        timm = _check_model(name, "task.features=timm:NAME")
        try:
            self.backbone = timm.create_model(name, pretrained=True, num_classes=0)
            like = timm.data.resolve_model_data_config(self.backbone)
            if like["input_size"][0] != 3:
                raise ValueError(f"it takes images of {like['input_size'][0]} channels, not of 3")
        except Exception as error:  # those of timm and of what it stands on share no base
            raise ConfigError(f"timm's model {name} cannot be had ({reason(error)}).") from error
        self.size = like["input_size"][1:]
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(like["mean"]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(like["std"]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        sized = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        return self.backbone((sized - self.mean) / self.std)


def _group_norm(module: nn.Module) -> None:
    """Put group normalisation in the place of every batch normalisation."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            norm: nn.Module = nn.GroupNorm(channels // gcd(channels, GROUP), channels)
            if hasattr(child, "act"):  # timm's, with an activation of its own
                norm = nn.Sequential(norm, child.get_submodule("act"))
            setattr(module, name, norm)
        else:
            _group_norm(child)


def _check_model(name: str, option: str) -> ModuleType:
    """Return timm, which must know a model by this name: a checkpoint may name it, and prefixes as
    in ``hf-hub:NAME`` would load what anybody published or put into a folder.

    Raises:
        ConfigError: timm is not installed, or has no such model.
    """
    timm = _timm()
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models())
        raise ConfigError(
            f"{option}: {name} is no model of timm {timm.__version__}; "
            f"{'near it are ' + ', '.join(near) if near else 'say, resnet18 is one'}."
        )
    return timm


def _timm() -> ModuleType:
    try:
        import timm
        import timm.layers
    except ImportError as error:
        raise ConfigError(
            "images need timm, which is not installed: pip install 'ebt_policy[vision]'."
        ) from error
    return timm
