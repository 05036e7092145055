"""Encoders of frames to features: a small autoencoder of this package, or a pretrained model.

Shapes: N frames, H x W pixels, F features, C latent channels of h x w positions (F = C h w).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ebt_policy.errors import ConfigError
from ebt_policy.io.paths import reason
from ebt_policy.models.base import Domain, Model
from ebt_policy.models.timm_features import TimmFeatures
from ebt_policy.video.model import VIDEO_MODELS, build_video_model

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

BATCH = 64  # frames that are encoded or decoded at once


@VIDEO_MODELS.register("autoencoder")
class Autoencoder(Model):
    """A small AutoencoderKL of diffusers (Rombach et al. 2022): frames to latents and back.

        loss = |y - dec(z)|^2 + kl KL(q(z | y), N(0, 1)) / F,   z ~ q(z | y)

    The error is squared, because an absolute error favours omitting small objects. With an absolute
    error, decoded frames of Push-T lacked the agent, which moves the T.

    Args:
        channels: channels of each stage; height and width are halved between stages.
        latent: C.
        kl: weight of the divergence, which limits the spread of the features; usually small.
    """

    name = "autoencoder"
    domain = Domain.VIDEO

    def __init__(self, channels: list[int], latent: int, kl: float) -> None:
        super().__init__()
        if not channels or latent < 1 or kl < 0 or any(c % 8 for c in channels):
            raise ConfigError(
                "model.channels must be multiples of 8, model.latent at least 1 and model.kl at "
                f"least 0, got {channels}, {latent} and {kl}."
            )
        stages = len(channels)
        blocks: dict[str, Any] = {
            "down_block_types": ("DownEncoderBlock2D",) * stages,
            "up_block_types": ("UpDecoderBlock2D",) * stages,
            "block_out_channels": tuple(channels),
        }
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # slow to import

        self.net = AutoencoderKL(
            **blocks, latent_channels=latent, norm_num_groups=8, layers_per_block=1
        )
        self.shrinks, self.latent, self.kl = 2 ** (stages - 1), latent, kl

    @property
    def keys(self) -> tuple[str, ...]:
        return ("image",)

    def normalize(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert the images of a batch, see `signed`."""
        return {**batch, "image": signed(batch["image"])}

    def sample_noise(self, batch: dict[str, Any]) -> dict[str, Any]:
        count, _, height, width = batch["image"].shape
        _check_sides(height, width, self.shrinks)
        shape = (count, self.latent, height // self.shrinks, width // self.shrinks)
        return {"normal": torch.randn(shape, device=batch["image"].device)}

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        images, normal = batch["image"], batch["noise"]["normal"]
        encoded: Any = self.net.encode(images)
        posterior = encoded.latent_dist
        decoded: Any = self.net.decode(posterior.mean + posterior.std * normal)
        error = (decoded.sample - images).square().mean()
        divergence = posterior.kl().mean() / normal[0].numel()
        return error + self.kl * divergence, {"error": error.detach(), "kl": divergence.detach()}

    @classmethod
    def _from_config(cls, config: dict[str, Any], folder: Path) -> Model:
        return build_video_model(config)


def _check_sides(height: int, width: int, shrinks: int) -> None:
    if height % shrinks or width % shrinks:
        raise ConfigError(
            f"task.height={height} and task.width={width} must be multiples of {shrinks} for an "
            "autoencoder of this depth."
        )


def signed(frames: Tensor) -> Tensor:
    """Convert bytes (N, H, W, 3) to (N, 3, H, W) in [-1, 1]."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1


class FrameFeatures(ABC):
    """Base of encoders of frames to features.

    Args:
        net: the network; its weights are frozen.
        device: device of the network.
    """

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        self.net, self.device = net.to(device).eval().requires_grad_(False), device

    @cached_property
    def digest(self) -> str:
        """SHA-256 digest of the weights."""
        digest = hashlib.sha256()
        for name, value in self.net.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames (N, H, W, 3) uint8 to features (N, F) on the CPU."""
        batches = [self._encode(x.to(self.device)).flatten(1).cpu() for x in frames.split(BATCH)]
        return torch.cat(batches)

    @abstractmethod
    def _encode(self, frames: Tensor) -> Tensor: ...


class Latents(FrameFeatures):
    """Encoder to the mean latents of an AutoencoderKL, which can be decoded to frames."""

    net: AutoencoderKL

    @property
    def _shrinks(self) -> int:
        return 2 ** (len(self.net.config["block_out_channels"]) - 1)

    def _encode(self, frames: Tensor) -> Tensor:
        _, height, width, _ = frames.shape
        _check_sides(height, width, self._shrinks)
        encoded: Any = self.net.encode(signed(frames))
        return encoded.latent_dist.mean

    @torch.no_grad()
    def decode(self, features: Tensor, height: int, width: int) -> Tensor:
        """Decode features (N, F) to frames (N, H, W, 3) uint8 on the CPU."""
        shape = (-1, height // self._shrinks, width // self._shrinks)
        batches = []
        for x in features.split(BATCH):
            latents: Any = x.to(self.device).unflatten(1, shape)
            decoded: Any = self.net.decode(latents)
            pixels = ((decoded.sample + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            batches.append(pixels.permute(0, 2, 3, 1).cpu())
        return torch.cat(batches)


class Backbone(FrameFeatures):
    """Encoder to the pooled features of a vision model of timm, such as DINOv2."""

    def _encode(self, frames: Tensor) -> Tensor:
        return self.net((signed(frames) + 1) / 2)


def frame_features(name: str, device: torch.device) -> FrameFeatures:
    """Load an encoder of frames by name.

    Args:
        name: a run of ``model=autoencoder``; ``timm:NAME``, a pretrained vision model of timm; or
            an AutoencoderKL of diffusers, as a folder or a name of the Hugging Face hub.
        device: device of the encoder.

    Raises:
        ConfigError, CheckpointError: the encoder cannot be loaded.
    """
    if name.startswith("timm:"):
        return Backbone(TimmFeatures(name.removeprefix("timm:")), device)
    folder = Path(name)
    if (folder / "checkpoints").is_dir() or (folder / "format_version").is_file():
        return Latents(Autoencoder.from_checkpoint(folder).net, device)
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # slow to import

        # Only safetensors are safe: other formats are unpickled, and an untrusted checkpoint may
        # contain this name.
        loaded_model: Any = AutoencoderKL.from_pretrained(
            name, use_safetensors=True, output_loading_info=True
        )
        net, loading_info = loaded_model
        if absent := loading_info["missing_keys"]:  # Diffusers keeps random values for these.
            raise ValueError(f"it lacks {len(absent)} weights, {sorted(absent)[0]} among them")
        if not all(value.isfinite().all() for value in net.state_dict().values()):
            raise ValueError("its weights have NaN or infinity")
    except Exception as error:  # Errors of diffusers and its dependencies have no common base.
        raise ConfigError(
            f"task.features={name} is neither a run of model=autoencoder nor an AutoencoderKL that "
            f"can be loaded ({reason(error)})."
        ) from error
    return Latents(net, device)
