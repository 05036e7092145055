"""The policy type ``ebt``: an energy policy of ebt_policy with LeRobot's interface.

Shapes: B batch, T `horizon`, To `n_obs_steps`, Ta `n_action_steps`, A action dimension, H x W
pixels of a camera.
"""

import math
from collections import deque
from typing import Any

import torch
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from ebt_policy.data.normalizer import Normalizer
from ebt_policy.policies import ChunkConstraints, EnergyPolicy, build_policy
from ebt_policy.training.averaging import averaged_copy

from .configuration_ebt import EBTConfig
from .fitting import fit_to_dataset


class EBTPolicy(PreTrainedPolicy):
    """Energy-based transformer policy.

    The weights are trained in `model`. Predictions use their moving average, `averaged`, which
    LeRobot's checkpoints hold, too.

    Args:
        config: the configuration; its ``sections`` and ``normalizer`` are set if they are None.
        dataset_meta: metadata of the data set to train on; only needed to set them.
        dataset_stats: not used; see `EBTConfig.relative_actions`.

    Raises:
        ValueError: the features or an option are unsuitable, or there is no data set to train on.
    """

    config_class = EBTConfig
    name = "ebt"

    def __init__(
        self,
        config: EBTConfig,
        *,
        dataset_meta: LeRobotDatasetMetadata | None = None,
        dataset_stats: Any = None,
    ) -> None:
        super().__init__(config)
        config.validate_features()
        self.config: EBTConfig = config
        is_new = config.sections is None or config.normalizer is None
        if is_new:
            if dataset_meta is None:
                raise ValueError(
                    "--policy.type=ebt needs a data set to start from; give --dataset.repo_id, or "
                    "--policy.path of a trained policy."
                )
            fit_to_dataset(config, dataset_meta)
        config.check_trained_options()
        assert config.normalizer is not None
        model = build_policy(config.current_sections, Normalizer.from_json(config.normalizer))
        assert isinstance(model, EnergyPolicy)
        if model.vision is not None and is_new:
            model.vision.load_pretrained()
        self.model = model
        self.averaged = averaged_copy(model, config.ema_power)
        if config.compile_model:
            model.compile_training()
        self._seen: deque[dict[str, Tensor]] = deque(maxlen=config.n_obs_steps)
        self._actions: deque[Tensor] = deque()
        self._chunk: Tensor | None = None

    # -- training ---------------------------------------------------------------------------

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Return parameter groups: weight decay for matrices only.

        When a training starts, also from a trained policy, the average of the weights starts anew.
        Otherwise, after a long training, it would hardly follow the weights.
        """
        config = self.config
        if config.starts_training:
            self.averaged.n_averaged.zero_()
        return self.model.parameter_groups(config.optimizer_lr, config.optimizer_weight_decay)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and metrics of a batch; of the averaged weights in evaluation mode."""
        model = self.model if self.training else self._predictor
        actions = batch[ACTION].reshape(len(batch[ACTION]), -1, model.shape.action_dim)
        rows = model.normalize({**self._observations(batch), "action": actions})
        loss, metrics = model.training_loss(rows) if self.training else model.loss(rows)
        return loss, {name: float(value) for name, value in metrics.items() if value.numel() == 1}

    def update(self) -> None:
        """Update the averaged weights; LeRobot calls it after each optimizer step."""
        self.averaged.update_parameters(self.model)

    # -- inference --------------------------------------------------------------------------

    @property
    def _predictor(self) -> EnergyPolicy:
        return self.averaged.module

    def reset(self) -> None:
        """Forget observations and actions; LeRobot calls it when an episode starts."""
        self._seen.clear()
        self._actions.clear()
        self._chunk = None

    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Return the next action (B, A); a chunk is predicted after every Ta actions."""
        newest = {key: batch[key] for key in self._keys}
        while len(self._seen) < self.config.n_obs_steps - 1:  # an episode starts
            self._seen.append(newest)
        self._seen.append(newest)
        if not self._actions:
            stacked = {k: torch.stack([seen[k] for seen in self._seen], dim=1) for k in newest}
            chunk = self.predict_action_chunk(stacked, **kwargs)
            self._actions.extend(chunk[:, : self.config.n_action_steps].unbind(dim=1))
        return self._actions.popleft()

    # With --use_torch_compile, LeRobot would trace all of it, which fails or takes minutes.
    @torch.compiler.disable
    def predict_action_chunk(
        self,
        batch: dict[str, Tensor],
        *,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Predict actions from the next one on.

        Args:
            batch: observations (B, To, ...), or only the newest (B, ...), which then counts as all.
            inference_delay: number of actions of the earlier chunk that the robot executes during
                the prediction; the chunk begins with them.
            prev_chunk_left_over: (n, A) or (B, n, A), actions of the earlier chunk that are not
                executed yet, and rows of zeros, with which LeRobot pads them.
            kwargs: not used.

        Returns:
            (B, T - To + 1, A).
        """
        with torch.inference_mode(False), torch.no_grad():
            # Tensors of the inference mode cannot be differentiated through.
            batch = {key: batch[key].clone() for key in self._keys}
            obs = self._observations(batch)
            prefix = None
            if inference_delay and prev_chunk_left_over is not None:
                left_over = prev_chunk_left_over.clone().to(obs["obs"])
                prefix = self._prefix(left_over, inference_delay, len(obs["obs"]))
            constraints = ChunkConstraints(prefix=prefix)
            chunk = self._predictor.predict_on_device(obs, constraints=constraints)
            self._chunk = chunk.actions[:, self.config.n_obs_steps - 1 :]
            return self._chunk

    def supports_rtc(self) -> bool:
        """Return True: chunks can begin with the actions that are executed meanwhile."""
        return True

    def _prefix(self, left_over: Tensor, delay: int, batch: int) -> Tensor | None:
        """Return the committed actions (B, To - 1 + n, A) from the start of the chunk on.

        At most ``delay`` actions are committed, without the zeros of the padding. The actions
        before them were executed. They are known if the earlier chunk has the actions left over;
        otherwise the first one is repeated.
        """
        left_over = left_over.expand(batch, *left_over.shape[-2:])
        past = self.config.n_obs_steps - 1
        start = self._position(left_over)
        if start is not None and self._chunk is not None:
            count = self._chunk.shape[1] - start
        else:
            nonzero = left_over.any(dim=-1).any(dim=0).nonzero().flatten()
            count = int(nonzero[-1]) + 1 if len(nonzero) else 0
        committed = left_over[:, : min(delay, count, self.config.horizon - past)]
        if not committed.shape[1]:
            return None
        executed = left_over[:, :1].expand(-1, past, -1)
        if start is not None and start >= past and self._chunk is not None:
            executed = self._chunk[:, start - past : start]
        return torch.cat([executed, committed], dim=1)

    def _position(self, left_over: Tensor) -> int | None:
        """Return the index in the earlier chunk from which on its actions are left over."""
        if self._chunk is None or len(self._chunk) != len(left_over):
            return None
        for start in range(self._chunk.shape[1]):
            rest = self._chunk[:, start : start + left_over.shape[1]]
            count = rest.shape[1]
            if count and torch.equal(rest, left_over[:, :count]) and not left_over[:, count:].any():
                return start
        return None

    # -- observations -----------------------------------------------------------------------

    @property
    def _keys(self) -> tuple[str, ...]:
        return (*self.config.state_features, *self.config.image_features)

    def _observations(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return "obs" (B, To, Do) and images (B, To, H, W, 3) uint8 as `Policy` expects them."""
        steps, shape = self.config.n_obs_steps, self.model.shape

        def with_steps(value: Tensor) -> Tensor:
            """Repeat (B, 1, ...), the newest observation alone."""
            return value.expand(-1, steps, *value.shape[2:]) if value.shape[1] == 1 else value

        states = []
        for key, feature in self.config.state_features.items():
            rows = batch[key].reshape(len(batch[key]), -1, math.prod(feature.shape))
            states.append(with_steps(rows.float()))
        obs = {"obs": torch.cat(states, dim=-1)}
        for key, (name, size) in zip(
            self.config.image_features, (shape.cameras or {}).items(), strict=True
        ):
            frames = batch[key] if batch[key].ndim == 5 else batch[key].unsqueeze(1)
            frames = resize(with_steps(frames), size)
            frames = (255 * frames).round().clamp(0, 255).to(torch.uint8)
            obs[name] = frames.movedim(-3, -1)
        return obs


def resize(frames: Tensor, size: list[int]) -> Tensor:
    """Crop frames (..., 3, H, W) to the aspect ratio of a size [h, w], and resize them."""
    height, width = frames.shape[-2:]
    scale = min(height / size[0], width / size[1])
    crop = [round(side * scale) for side in size]
    flat = transforms.center_crop(frames.flatten(0, -4), crop)
    return transforms.resize(flat, size, antialias=True).unflatten(0, frames.shape[:-3])
