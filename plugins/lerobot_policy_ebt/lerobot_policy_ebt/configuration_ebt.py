"""Configuration of the policy type ``ebt``."""

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig, DiffuserSchedulerConfig
from lerobot.utils.constants import ACTION, OBS_STATE


@PreTrainedConfig.register_subclass("ebt")
@dataclass
class EBTConfig(PreTrainedConfig):
    """Configuration of an energy-based transformer policy.

    After training, only ``n_action_steps``, ``num_inference_steps``, ``num_candidates`` and the
    options of the optimizer can be changed.

    Args:
        n_obs_steps, horizon, n_action_steps: To observations that a prediction reads, T actions of
            a chunk from the first of them on, and Ta actions that are executed.
        max_prefix_len: condition the network on up to this many committed actions, for real-time
            chunking; 0 for none.
        relative_actions: predict actions relative to the newest state, where the data shows that
            they are targets of it. Their statistics are computed from the data set.
        resize_shape: (H, W) to which all images are resized; None for a shorter side of 96 pixels.
        size, vision, objective: names of the configurations of ebt_policy for the transformer, the
            camera encoder and the training objective.
        num_inference_steps: descent steps of a prediction.
        num_candidates: candidates that descend together; the one of the lowest energy is executed.
        compile_model: use torch.compile in training.
        optimizer_lr, optimizer_weight_decay, optimizer_grad_clip_norm, scheduler_warmup_steps:
            AdamW with linear warm-up and cosine decay.
        ema_power: predictions use averaged weights, with the decay 1 - (1 + step)^-ema_power.
        sections: sections of ebt_policy's configuration. They are set when training starts.
        normalizer: statistics of states and actions. They are set when training starts.

    Attributes:
        starts_training: whether LeRobot starts a training, in contrast to resuming one.
    """

    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    max_prefix_len: int = 0
    relative_actions: bool = True
    resize_shape: tuple[int, int] | None = (96, 96)
    size: str = "xs"
    vision: str = "resnet18"
    objective: str = "flow"

    # The policy normalises by itself, because the statistics of relative actions differ from the
    # statistics of the data set.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.IDENTITY,
            "ENV": NormalizationMode.IDENTITY,
            "ACTION": NormalizationMode.IDENTITY,
        }
    )

    num_inference_steps: int = 2
    num_candidates: int = 8

    compile_model: bool = False
    optimizer_lr: float = 1e-3
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 500
    ema_power: float = 0.75

    sections: dict[str, Any] | None = None
    normalizer: dict[str, dict[str, list[float]]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.starts_training = False  # no field, because it must not be stored
        if not 1 <= self.n_action_steps <= self.horizon - self.n_obs_steps + 1:
            raise ValueError(
                f"--policy.n_action_steps={self.n_action_steps} must be at least 1 and at most "
                f"horizon - n_obs_steps + 1 = {self.horizon - self.n_obs_steps + 1}."
            )

    @property
    def drop_n_last_frames(self) -> int:
        """Number of last frames of an episode at which no window starts, to limit the padding."""
        return self.horizon - self.n_action_steps - self.n_obs_steps + 1

    @property
    def observation_delta_indices(self) -> list[int]:
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(1 - self.n_obs_steps, 1 - self.n_obs_steps + self.horizon))

    @property
    def reward_delta_indices(self) -> None:
        return None

    @property
    def state_features(self) -> dict[str, PolicyFeature]:
        """Features with numbers, which are joined to one observation in this order."""
        features = self.input_features or {}
        numeric = {
            key: feature
            for key, feature in features.items()
            if feature.type in (FeatureType.STATE, FeatureType.ENV)
        }
        return dict(sorted(numeric.items(), key=lambda item: (item[0] != OBS_STATE, item[0])))

    def get_optimizer_preset(self) -> AdamWConfig:
        # LeRobot calls this when a training starts; to resume, it reads a stored optimizer.
        self.starts_training = True
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=(0.9, 0.95),
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> DiffuserSchedulerConfig:
        return DiffuserSchedulerConfig(name="cosine", num_warmup_steps=self.scheduler_warmup_steps)

    def validate_features(self) -> None:
        """Raise ValueError if there is no state or no action, or a camera has no colours."""
        if not self.state_features:
            raise ValueError(
                "--policy.type=ebt needs a state, such as observation.state; the data set has "
                f"{', '.join(self.input_features or {}) or 'no observations'}."
            )
        if self.action_feature is None:
            raise ValueError(
                f"--policy.type=ebt needs the feature {ACTION}; the data set has "
                f"{', '.join(self.output_features or {}) or 'no actions'}."
            )
        for key, feature in self.image_features.items():
            if feature.shape[0] != 3:
                raise ValueError(
                    f"{key} has the shape {tuple(feature.shape)}, but --policy.type=ebt reads "
                    "images with 3 channels; list the features to read in --policy.input_features."
                )

    @property
    def current_sections(self) -> dict[str, Any]:
        """``sections`` with the options that can be changed after training."""
        assert self.sections is not None
        model = self.sections["model"]
        inference = model["inference"] | {
            "steps": self.num_inference_steps,
            "num_candidates": self.num_candidates,
        }
        return self.sections | {
            "model": model | {"inference": inference},
            "shape": self.sections["shape"] | {"n_action_steps": self.n_action_steps},
        }

    @property
    def plug_in_section(self) -> dict[str, Any]:
        """The section ``lerobot``: options that are not in the other sections by their names."""
        size = self.resize_shape
        return {
            "relative_actions": self.relative_actions,
            "resize_shape": None if size is None else list(size),
            "vision": self.vision,
        }

    def check_trained_options(self) -> None:
        """Raise ValueError if an option differs from its value in training."""
        assert self.sections is not None
        shape = self.sections["shape"]
        trained = {key: shape[key] for key in ("horizon", "n_obs_steps", "max_prefix_len")}
        trained |= {key: self.sections[key]["name"] for key in ("size", "objective")}
        current = {name: getattr(self, name) for name in trained} | self.plug_in_section
        for name, value in (trained | self.sections.get("lerobot", {})).items():
            if current[name] != value:
                raise ValueError(
                    f"--policy.{name}={current[name]} differs from {value}, the value in training; "
                    "train a new policy to change it."
                )
