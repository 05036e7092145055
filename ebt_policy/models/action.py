"""The energy policy: descend E(observation, action chunk) to act.

Shapes: B batch, M candidates, T horizon, A action dimension, To observations, Do their dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ebt_policy.data.normalize import Normalizer
from ebt_policy.energy import Descent, descend
from ebt_policy.energy.noise import Generators, draw_normal
from ebt_policy.energy.objectives import Objective, corrupt
from ebt_policy.energy.transformer import Size
from ebt_policy.models.network import ChunkTransformer
from ebt_policy.models.policy import Chunk, Policy, Shape
from ebt_policy.models.vision import VisionEncoder
from ebt_policy.options import ConfigError, options


@dataclass(frozen=True)
class EnergyInference:
    """How an energy policy predicts.

    Args:
        steps: descent steps.
        candidates: M chunks descended together, of which the best is taken.
        level: at which finished candidates are verified (see `Objective.verify`).
        select: the best has the lowest verified ``energy`` or the largest ``drop`` on its way.
        stop_grad_norm: a candidate stops early below this gradient norm; None never. For landscapes
            that are flat at the data; along levels the gradient never fades.
        stop_change: along levels, a candidate lands early where its path is straight (see
            `descend`), in units of the actions' spread; None never.
    """

    steps: int = 2
    candidates: int = 8
    level: float = 0.5
    select: Literal["energy", "drop"] = "energy"
    stop_grad_norm: float | None = None
    stop_change: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.candidates < 1:
            raise ConfigError("inference.steps and inference.candidates must be at least 1.")
        if not 0 < self.level < 1:
            raise ConfigError(f"inference.level must lie between 0 and 1, got {self.level}.")
        if self.select not in ("energy", "drop"):
            raise ConfigError(f"inference.select must be energy or drop, got {self.select}.")
        for name in ("stop_grad_norm", "stop_change"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"inference.{name} must be positive or null, got {value}.")


class EnergyPolicy(Policy):
    """Energy-based transformer policy.

    Args:
        shape, normalizer, vision: as in `Policy`.
        size: the size dial.
        actions_per_token: as in `ChunkTransformer`.
        inference: options of `EnergyInference`.
        objective: how the landscape is learned.
    """

    name = "ebt"

    def __init__(
        self,
        shape: Shape,
        normalizer: Normalizer,
        size: Size,
        *,
        actions_per_token: int,
        inference: dict[str, Any],
        objective: Objective,
        vision: VisionEncoder | None = None,
    ) -> None:
        super().__init__(shape, normalizer, vision)
        self.objective = objective
        self.net = ChunkTransformer(
            self.tokens,
            size,
            actions_per_token,
            output="energy",
            level=objective.level_conditioned,
        )
        self.inference = options(EnergyInference, inference, "model.inference")
        self.configure_inference()
        self._compiled: Callable[..., Descent] | None = None

    def configure_inference(self, **changes: Any) -> None:
        stop_change = changes.get("stop_change", self.inference.stop_change)
        if stop_change is not None and not self.objective.level_conditioned:
            raise ConfigError(
                "inference.stop_change needs an objective that is told the level (objective=flow); "
                "use inference.stop_grad_norm."
            )
        super().configure_inference(**changes)

    def before_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        replay = self.objective.replay
        count = int(len(batch["obs"]) * self.objective.replay_fraction)
        if replay is None or len(replay) == 0 or count == 0:
            return batch
        old = replay.sample(count)
        rows = {key: torch.cat([batch[key], old[key]]) for key in batch}
        return {**rows, "replayed": old["candidate"]}

    def draws(self, batch: dict[str, Any]) -> dict[str, Any]:
        draws = self.objective.draw(batch["action"].unsqueeze(1))
        if "replayed" in batch:  # these go on where earlier descents ended
            draws["normal"][-len(batch["replayed"]) :] = batch["replayed"]
        return draws

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        context = self.net.encode(self.features(batch))
        return self.objective(
            partial(self.net, context),
            batch["action"].unsqueeze(1),
            batch["draws"],
        )

    def after_step(self, rows: dict[str, Tensor]) -> None:
        if self.objective.replay is not None:
            self.objective.replay.add(rows)

    def extra_training_state(self) -> dict[str, Any]:
        replay = self.objective.replay
        return {"replay": replay.state_dict()} if replay is not None else {}

    def load_extra_training_state(self, state: dict[str, Any]) -> None:
        if self.objective.replay is not None:
            device = next(self.parameters()).device
            self.objective.replay.load_state_dict(state["replay"], device)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        groups = super().parameter_groups(lr, weight_decay)
        learned = list(self.objective.parameters())
        if learned:
            # A learned step size moves on its own scale: three times its value a unit of learning
            # rate, as in the published recipes (500 and 1500 for text, 3000 and 9000 for images).
            chosen = {id(p) for p in learned}
            groups[1]["params"] = [p for p in groups[1]["params"] if id(p) not in chosen]
            scale = 3.0 * float(learned[0].detach())
            groups.append({"params": learned, "lr": lr * scale, "weight_decay": 0.0})
        return groups

    def energies(self, obs: dict[str, Tensor], chunks: Tensor) -> Tensor:
        """Verified energy of given chunks (B, M, T, A), env units -> (B, M)."""
        with torch.no_grad():
            context = self.net.encode(self.observe(obs))
            candidates = self._network_actions(obs["obs"], chunks)
            return self.objective.verify(
                partial(self.net, context), candidates, self.inference.level
            )

    def descend(
        self,
        obs: Tensor,
        prefix: Tensor | None = None,
        deadline_s: float | None = None,
        generator: Generators = None,
    ) -> Descent:
        """The descent behind `predict_chunk`, in the network's units, one unit a candidate.

        Args:
            obs: as `observe` gives it; the rest is `refine`'s.
        """
        how = self.inference
        like = obs.new_empty(len(obs), how.candidates, self.shape.horizon, self.shape.action_dim)
        init = draw_normal(like, generator)
        whole = prefix is None and deadline_s is None
        whole = whole and how.stop_grad_norm is None and how.stop_change is None
        search = self._compiled if whole and self._compiled is not None else self._search
        return search(obs, init, prefix, deadline_s, generator)

    def compile_prediction(self) -> None:
        # As one piece, all steps and the verification; what rarely happens stays as it is.
        self._compiled = torch.compile(self._search)
        if self.vision is not None:
            self.vision.compile()

    def _search(
        self,
        obs: Tensor,
        init: Tensor,
        prefix: Tensor | None,
        deadline_s: float | None,
        generator: Generators,
    ) -> Descent:
        how = self.inference
        context = self.net.encode(obs)
        chosen = self.objective.descent_options(how.steps)
        levels = chosen.get("levels")
        if levels is not None:
            chosen["levels"] = levels = levels.to(obs.device)
        hold = None
        if prefix is not None and levels is None:
            mask = torch.arange(self.shape.horizon, device=obs.device) < prefix.shape[1]
            init[:, :, : prefix.shape[1]] = prefix.unsqueeze(1)
            chosen["frozen"] = mask.view(1, 1, -1, 1)
        elif prefix is not None and levels is not None:
            hold = _along_the_path(init, prefix.unsqueeze(1), levels)

        def project(x: Tensor, done: int) -> Tensor:
            # Beyond the demonstrations' limits nothing was learned; on the way there is noise.
            x = self.normalizer.clamp("action", x) if done == how.steps else x
            return x if hold is None else hold(x, done)

        energy = partial(self.net, context)
        return descend(
            energy,
            init,
            steps=how.steps,
            candidates=how.candidates,
            select=how.select,
            stop_grad_norm=how.stop_grad_norm,
            stop_change=how.stop_change,
            deadline_s=deadline_s,
            project=project,
            verify=lambda x: self.objective.verify(energy, x, how.level),
            generator=generator,
            **chosen,
        )

    def refine(
        self, obs: Tensor, prefix: Tensor | None, deadline_s: float | None, generator: Generators
    ) -> Chunk:
        found = self.descend(obs, prefix, deadline_s, generator)
        return Chunk(
            actions=found.candidate[:, 0],
            steps_used=found.steps_used[:, 0],
            energy=found.energies[-1, :, 0],
            grad_norm=found.grad_norms[-1, :, 0],
        )


def _along_the_path(init: Tensor, prefix: Tensor, levels: Tensor):
    """Projection that holds a prefix where the corruption path has it at each level.

    A level-conditioned energy expects all actions to be equally noisy; a clean prefix beside noisy
    actions is nothing that it was trained on.
    """
    noise = init[:, :, : prefix.shape[2]].clone()

    def project(x: Tensor, done: int) -> Tensor:
        at = corrupt(prefix.expand_as(noise), noise, levels[done].expand(noise.shape[:2]))
        return torch.cat([at, x[:, :, prefix.shape[2] :]], dim=2)

    return project
