"""robomimic's algorithm ``ebt``; importing this module registers it.

Shapes: B batch, To `frame_stack`, T actions of a chunk, F features of robomimic's observation
encoder, A action dimension.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from robomimic.algo import PolicyAlgo, register_algo_factory_func  # pyright: ignore
from robomimic.models.obs_nets import ObservationGroupEncoder  # pyright: ignore
from robomimic.utils import obs_utils, tensor_utils, torch_utils  # pyright: ignore
from torch import Tensor, nn

from ebt_policy.cli.composition import compose_config
from ebt_policy.data.normalizer import Normalizer
from ebt_policy.errors import ConfigError
from ebt_policy.policies import build_policy
from ebt_policy.policies.vision import replace_batch_norm
from ebt_policy.training.averaging import averaged_copy

FEATURES = "obs"  # key of the encoder's features in ebt_policy
UNCHANGED = {"min": -1.0, "max": 1.0}  # limits that map to themselves: features stay unchanged
STATISTICS = ("min", "max", "mean", "std")


@register_algo_factory_func("ebt")  # pyright: ignore
def algo_config_to_class(algo_config: Any) -> tuple[type, dict[str, Any]]:
    """Return the class of the algorithm, and further arguments of it."""
    return EBT, {}


class EncodedPolicy(nn.Module):
    """robomimic's observation encoder, and an energy policy that reads its features.

    Args:
        encoder: encoder of one observation, with F features.
        sections: sections of ebt_policy's configuration, without ``shape``.
        shape: options of `PolicyShape`, without ``obs_dim``.
        low_dim: key -> number of entries of each low-dimensional observation.

    Attributes:
        normalizer: normalizer of low-dimensional observations, before the encoder, and of actions.
    """

    def __init__(
        self,
        encoder: ObservationGroupEncoder,
        sections: dict[str, Any],
        shape: dict[str, Any],
        low_dim: dict[str, int],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        (num_features,) = encoder.output_shape()
        self._unchanged = {key: [value] * num_features for key, value in UNCHANGED.items()}
        self._widths = {**low_dim, "action": shape["action_dim"]}
        for key, width in self._widths.items():  # persistent, unlike the normalizer
            self.register_buffer(f"{key}_statistics", torch.zeros(len(STATISTICS), width))
        self.normalizer = self._make_normalizer()
        self.energy_policy = build_policy(
            {**sections, "shape": {**shape, "obs_dim": num_features}}, self.normalizer
        )

    def set_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        """Normalise with these statistics, key -> `STATISTICS` (4, D)."""
        for key in self._widths:
            self.get_buffer(f"{key}_statistics").copy_(statistics[f"{key}_statistics"])
        self.normalizer = self._make_normalizer()
        self.energy_policy.normalizer = self.normalizer

    def _make_normalizer(self) -> Normalizer:
        limits: dict[str, Any] = {FEATURES: self._unchanged}
        for key in self._widths:
            rows = self.get_buffer(f"{key}_statistics").double().tolist()
            count = len(STATISTICS) if key == "action" else 2  # states have limits only
            limits[key] = dict(zip(STATISTICS[:count], rows, strict=False))
        return Normalizer(limits).to(self.get_buffer("action_statistics").device)

    def features(self, obs: dict[str, Tensor]) -> Tensor:
        """Return the features (B, To, F) of observations (B, To, ...)."""
        known = {k: self.normalizer.normalize(k, v) for k, v in obs.items() if k in self._widths}
        features: Any = tensor_utils.time_distributed(
            {"obs": {**obs, **known}}, self.encoder, inputs_as_kwargs=True
        )
        return features

    def forward(self, obs: dict[str, Tensor], actions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and metrics; ``obs`` (B, To, ...) and ``actions`` (B, T, A)."""
        policy = self.energy_policy
        batch = policy.normalize({FEATURES: self.features(obs), "action": actions})
        return policy.training_loss(batch) if self.training else policy.loss(batch)


class EBT(PolicyAlgo):  # pyright: ignore
    """Energy policy as an algorithm of robomimic.

    robomimic's encoders process the observations and are trained with the policy. Predictions use
    averaged weights.
    """

    def _create_networks(self) -> None:
        config, train = self.algo_config, self.global_config.train
        sections = compose_config("train", [f"size={config.size}", f"objective={config.objective}"])
        self._check_config(sections["model"]["actions_per_token"])
        encoder = ObservationGroupEncoder(
            observation_group_shapes=OrderedDict(obs=OrderedDict(self.obs_shapes)),
            encoder_kwargs=obs_utils.obs_encoder_kwargs_from_config(self.obs_config.encoder),
        )
        replace_batch_norm(encoder)
        shape = {
            "action_dim": self.ac_dim,
            "horizon": train.frame_stack - 1 + train.seq_length,
            "n_obs_steps": train.frame_stack,
            "n_action_steps": config.n_action_steps,
        }
        self._low_dim = {
            key: int(np.prod(size))
            for key, size in self.obs_shapes.items()
            if obs_utils.key_is_obs_modality(key, "low_dim")
        }
        policy = EncodedPolicy(encoder, sections, shape, self._low_dim)
        policy.energy_policy.configure_inference(
            steps=config.num_inference_steps, num_candidates=config.num_candidates
        )
        averaged = averaged_copy(policy, config.ema_power)
        self.nets = nn.ModuleDict({"policy": policy, "averaged": averaged})
        self.nets = self.nets.float().to(self.device)
        self._actions: deque[Tensor] = deque()
        self._has_statistics = False

    def _check_config(self, actions_per_token: int) -> None:
        """Raise ConfigError for values of robomimic's configuration that are not supported."""
        config, train = self.algo_config, self.global_config.train
        if train.hdf5_normalize_obs:
            raise ConfigError(
                'algo_name "ebt" normalises observations by itself; set train.hdf5_normalize_obs '
                "to false."
            )
        if self.goal_shapes:
            raise ConfigError(
                'algo_name "ebt" has no goals; remove observation.modalities.goal, which lists '
                f"{', '.join(self.goal_shapes)}."
            )
        if config.n_action_steps > train.seq_length:
            raise ConfigError(
                f"algo.n_action_steps={config.n_action_steps} must be at most "
                f"train.seq_length={train.seq_length}."
            )
        if (horizon := train.frame_stack - 1 + train.seq_length) % actions_per_token:
            raise ConfigError(
                f"train.frame_stack - 1 + train.seq_length = {horizon} must be a multiple of "
                f"{actions_per_token}; change train.seq_length={train.seq_length}."
            )

    @property
    def _network(self) -> Any:
        """The `EncodedPolicy` that is trained."""
        return self.nets["policy"]

    @property
    def _averaged(self) -> Any:
        """The average of the `EncodedPolicy`, see `averaged_copy`."""
        return self.nets["averaged"]

    # -- training ---------------------------------------------------------------------------

    def process_batch_for_training(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the stacked observations, and the actions from the oldest of them on.

        The first call reads the statistics of the data set.
        """
        if not self._has_statistics:
            train = self.global_config.train
            data = Path(train.data).expanduser()
            self._set_statistics(read_statistics(data, train.hdf5_filter_key, self._low_dim))
        steps = self.global_config.train.frame_stack
        obs = {key: value[:, :steps] for key, value in batch["obs"].items()}
        rows: Any = {"obs": obs, "actions": batch["actions"]}
        rows = tensor_utils.to_float(tensor_utils.to_device(rows, self.device))
        return rows

    def train_on_batch(
        self, batch: dict[str, Any], epoch: int, validate: bool = False
    ) -> dict[str, Any]:
        """Make an update, or compute the loss of the averaged weights with ``validate``."""
        info = super().train_on_batch(batch, epoch, validate=validate)
        network = self._averaged.module if validate else self._network
        with torch_utils.maybe_no_grad(no_grad=validate):
            loss, metrics = network(batch["obs"], batch["actions"])
            info["losses"] = {"loss": loss.detach()}
            info["metrics"] = {k: v.detach() for k, v in metrics.items() if v.numel() == 1}
            if not validate:
                info["policy_grad_norms"] = torch_utils.backprop_for_loss(
                    net=self._network,
                    optim=self.optimizers["policy"],
                    loss=loss,
                    max_grad_norm=self.algo_config.max_gradient_norm,
                )
                self._averaged.update_parameters(self._network)
        return info

    def log_info(self, info: dict[str, Any]) -> dict[str, Any]:
        """Return the numbers of an update for robomimic's log."""
        log = super().log_info(info)
        log["Loss"] = info["losses"]["loss"].item()
        log |= {name: value.item() for name, value in info["metrics"].items()}
        if "policy_grad_norms" in info:
            log["Policy_Grad_Norms"] = info["policy_grad_norms"]
        return log

    # -- inference --------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget the planned actions; robomimic calls it before each episode."""
        self._actions.clear()

    def get_action(
        self, obs_dict: dict[str, Tensor], goal_dict: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Return the next action (1, A); a chunk is predicted after every ``n_action_steps``."""
        if not self._actions:
            network = self._averaged.module
            steps = self.global_config.train.frame_stack
            obs = {k: v if steps > 1 else v.unsqueeze(1) for k, v in obs_dict.items()}
            with torch.no_grad():
                features = network.features({key: obs[key] for key in self.obs_shapes})
                chunk = network.energy_policy.predict_on_device({FEATURES: features})
            future = chunk.actions[:, steps - 1 :][:, : self.algo_config.n_action_steps]
            self._actions.extend(future.unbind(dim=1))
        return self._actions.popleft()

    # -- storage ----------------------------------------------------------------------------

    def deserialize(self, model_dict: dict[str, Tensor]) -> None:
        """Load weights and statistics that `serialize` returned."""
        super().deserialize(model_dict)
        self._set_statistics(dict(self._network.named_buffers()))

    def _set_statistics(self, statistics: dict[str, Tensor]) -> None:
        for policy in (self._network, self._averaged.module):
            policy.set_statistics(statistics)
        self._has_statistics = True


def read_statistics(file: Path, mask: str | None, keys: Iterable[str]) -> dict[str, Tensor]:
    """Return `STATISTICS` (4, D) of actions and observations in a robomimic file.

    Args:
        file: the HDF5 file.
        mask: name of a subset; None for all demonstrations.
        keys: names of observations.
    """
    statistics = {}
    with h5py.File(file, "r") as opened:
        data: Any = opened
        names = list(data["data"]) if mask is None else [n.decode() for n in data[f"mask/{mask}"]]
        for key, path in {**{key: f"obs/{key}" for key in keys}, "action": "actions"}.items():
            rows = np.concatenate([data[f"data/{name}/{path}"][()] for name in names])
            rows = rows.reshape(len(rows), -1)
            values = np.stack([rows.min(0), rows.max(0), rows.mean(0), rows.std(0)])
            statistics[f"{key}_statistics"] = torch.from_numpy(values.astype(np.float32))
    return statistics
