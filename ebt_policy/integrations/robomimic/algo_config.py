"""The configuration of robomimic's algorithm ``ebt``; importing this module registers it."""

from robomimic.config.base_config import BaseConfig  # pyright: ignore


class EBTConfig(BaseConfig):
    """Configuration of an energy policy, ``"algo_name": "ebt"`` in a JSON configuration.

    A policy reads ``train.frame_stack`` observations. A chunk has ``train.frame_stack`` - 1 +
    ``train.seq_length`` actions, because it starts at the oldest of these observations.
    """

    ALGO_NAME = "ebt"  # type: ignore[assignment]

    def train_config(self) -> None:
        """Set the defaults of the section ``train``."""
        super().train_config()
        self.train.frame_stack = 2
        self.train.seq_length = 15
        self.train.hdf5_load_next_obs = False
        self.train.dataset_keys = ("actions",)
        self.train.batch_size = 128

    def algo_config(self) -> None:
        """Set the defaults of the section ``algo``."""
        optimizer = self.algo.optim_params.policy
        optimizer.optimizer_type = "adamw"
        optimizer.learning_rate.initial = 1e-3
        optimizer.learning_rate.decay_factor = 0.1
        optimizer.learning_rate.epoch_schedule = []  # epochs at which the rate is decayed
        optimizer.learning_rate.scheduler_type = "multistep"
        optimizer.regularization.L2 = 0.01
        self.algo.max_gradient_norm = 1.0
        self.algo.ema_power = 0.75  # the averaging decay is 1 - (1 + step)^-ema_power
        self.algo.size = "xs"  # size of the transformer, as in ebt_policy
        self.algo.objective = "flow"  # training objective, as in ebt_policy
        self.algo.n_action_steps = 8  # actions of a chunk that are executed
        self.algo.num_inference_steps = 2  # descent steps
        self.algo.num_candidates = 8  # candidates that descend together
