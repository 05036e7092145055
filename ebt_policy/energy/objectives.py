"""How a landscape is learned. Every objective trains through the one `descend`.

Notation: E the energy, y the target, n standard normal noise, x_k the candidate after k steps,
g a corruption level with g = 1 clean. Shapes: B batch, U units, * the shape of a unit.

An objective draws all its randomness in `draw`, before the compiled part and for the whole batch,
so that compiled equals eager and several processes equal one. `descent_options` says how the
landscape it made is to be descended at inference.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebt_policy.energy.candidate_space import EUCLIDEAN, CandidateSpace, corrupt, squared_error
from ebt_policy.energy.descent import descend
from ebt_policy.energy.gradients import EnergyFn
from ebt_policy.energy.replay_buffer import ReplayBuffer
from ebt_policy.energy.sampling import cosine_noise


def info_nce(positive: Tensor, negatives: Tensor) -> Tensor:
    """-log softmax of the positive among positive and negatives (van den Oord et al. 2018).

    Args:
        positive: energies (B, 1).
        negatives: energies (B, M).
    """
    logits = -torch.cat([positive, negatives], dim=1)
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def _require(fine: bool, option: str, allowed: str, got: object) -> None:
    if not fine:
        raise ValueError(f"objective.{option} must be {allowed}, got {got}.")


class Objective(nn.Module, ABC):
    """Base of all objectives.

    Attributes:
        space: of the candidates.
        level_conditioned: whether the energy is told the corruption level.
        replay: earlier predictions to go on from, or None.
        replay_fraction: rows of a batch to replay, as a fraction of it.
    """

    space: CandidateSpace = EUCLIDEAN
    level_conditioned: ClassVar[bool] = False
    replay: ReplayBuffer | None = None
    replay_fraction: float = 0.0

    @abstractmethod
    def draw(self, target: Tensor) -> dict[str, Any]:
        """Randomness for a batch of targets (B, U, *); tensors have B first."""

    @abstractmethod
    def forward(
        self, energy: EnergyFn, target: Tensor, draws: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and metrics; with a replay buffer the metrics hold its new ``candidate``."""

    @abstractmethod
    def descent_options(
        self, steps: int, level: float = 0.0, device: torch.device | None = None
    ) -> dict[str, Any]:
        """Arguments of `descend` at inference, besides the number of steps.

        Args:
            level: of corruption that candidates start from, 0 for noise.
            device: of the candidates, where levels are made.
        """

    def verify(self, energy: EnergyFn, candidate: Tensor, level: float) -> Tensor:
        """By what finished candidates (B, U, *) of one context compare: (B, U), lower is better.

        Args:
            level: of corruption at which a level-conditioned landscape judges them, in (0, 1).
        """
        return energy(candidate, None)


class Flow(Objective):
    """The gradient field carries noise to data in straight lines.

        x = g y + (1 - g) n,   g ~ U[0, 1]
        loss = | -dE/dx(x, g) - (y - n) |^2

    Flow matching (Lipman et al. 2023, Liu et al. 2023) with the velocity restricted to the
    gradient of a scalar. Trained by one full descent step from a demonstration corrupted to a
    random level; descended in N steps of 1/N, told the level.

    Args:
        level: tell the energy the level (False gives one landscape for all levels, a poorer
            sampler and a better verifier).
        samples: corrupted copies of each target, sharing one encoding of the context.
    """

    def __init__(self, level: bool = True, samples: int = 1) -> None:
        super().__init__()
        _require(samples >= 1, "samples", "at least 1", samples)
        self.level_conditioned = level  # type: ignore[misc]  # set for each instance, read-only
        self.samples = samples

    def draw(self, target: Tensor) -> dict[str, Any]:
        many = target.repeat_interleave(self.samples, dim=1)
        level = torch.rand(many.shape[:2], device=many.device, dtype=many.dtype)
        return {"normal": torch.randn_like(many), "level": level}

    def pace(self, level: Tensor) -> Tensor:
        """How fast the field moves at a level, (B, U) -> (B, U)."""
        return torch.ones_like(level)

    def forward(
        self, energy: EnergyFn, target: Tensor, draws: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        normal, level = draws["normal"], draws["level"]
        target = target.repeat_interleave(self.samples, dim=1)
        start = corrupt(target, normal, level)
        told = torch.stack([level, level]) if self.level_conditioned else None
        step = descend(energy, start, steps=1, step_size=1.0, levels=told, final_energy=False)
        pace = self.pace(level).reshape(*level.shape, *(1 for _ in target.shape[2:]))
        velocity = (target - normal) * pace
        loss = squared_error(step.candidate - start, velocity).mean()
        return loss, {"grad_norm": step.grad_norms.mean()}

    def descent_options(
        self, steps: int, level: float = 0.0, device: torch.device | None = None
    ) -> dict[str, Any]:
        chosen: dict[str, Any] = {"step_size": (1.0 - level) / steps}
        if self.level_conditioned:
            # At level 0 a candidate is noise and says nothing of the demonstrations: the field is
            # E[y | context] - x, so the first step needs one evaluation for all candidates.
            levels = torch.linspace(level, 1.0, steps + 1, device=device)
            chosen |= {"levels": levels, "shared_start": level == 0}
        return chosen

    def verify(self, energy: EnergyFn, candidate: Tensor, level: float) -> Tensor:
        """Negative log-likelihood of candidates, up to a constant of the context.

        The learned field is the marginal velocity of the corrupted demonstrations' density p_g,
        which on this path is v = x/g + (1-g)/g grad log p_g (Lipman et al. 2023; Zheng et al. 2023,
        "Guided Flows"). With v = -dE/dx that integrates to

            -log p_g(x) = g/(1-g) (E(x, g) + |x|^2 / 2g) + const,

        taken at x = g candidate: the likelihood of the candidate under the demonstrations blurred
        by normal noise of standard deviation (1-g)/g. At g = 1 the energy itself knows nothing of
        the demonstrations: there it is -|x|^2 / 2.
        """
        if not self.level_conditioned:
            return super().verify(energy, candidate, level)
        told = candidate.new_full(candidate.shape[:2], level)
        square = candidate.square().flatten(2).sum(-1)
        return level / (1 - level) * (energy(level * candidate, told) + level * square / 2)


class Equilibrium(Flow):
    """One landscape for all levels whose gradient fades to zero at the data.

        loss = | -dE/dx(x) - c(g) (y - n) |^2,   c(g) = min(1, (1 - g) / fade)

    Equilibrium matching (Wang & Du 2025, "Equilibrium Matching: Generative Modeling with Implicit
    Energy-Based Models"), truncated-decay variant. Demonstrations are the minima, so descent may
    go on as long as one likes and stop where the gradient vanishes.

    N steps of 1/N would stop short: where the field fades, at a distance d from the end, a step a
    leaves (1 - a / fade) d. So the steps have `REACH` / N, but no more than the fade, with which
    one from there lands, and no less than 1/N, with which they get there.

    Args:
        fade: the last part of the path, over which the field decays.
    """

    REACH = 2.0  # times the path; of a fade of 0.2 that leaves e^-6 of its length, however many

    def __init__(self, fade: float = 0.2, samples: int = 1) -> None:
        super().__init__(level=False, samples=samples)
        _require(0 < fade <= 1, "fade", "in (0, 1]", fade)
        self.fade = fade

    def pace(self, level: Tensor) -> Tensor:
        return ((1 - level) / self.fade).clamp(max=1.0)

    def descent_options(
        self, steps: int, level: float = 0.0, device: torch.device | None = None
    ) -> dict[str, Any]:
        longest = min(self.fade, self.REACH / steps)
        return {"step_size": max((1.0 - level) / steps, longest)}


class S1(Objective):
    """EBT's System 1 recipe (Gladstone et al. 2025, "Energy-Based Transformers", section 3).

        x_0 = n;   x_{k+1} = x_k - a dE/dx(x_k)   (graph cut between steps)
        loss = 1/N sum_k | x_k - y |^2,   k = 1 .. N

    with a learned step size a. From pure noise a squared error learns the conditional mean:
    modes are averaged, and more steps do not help.

    Args:
        steps: N.
        step_size: initial a.
        start: standard deviation of n; 0 for candidates that all start alike.
        told: tell the energy how many of the N steps are done.
        corrupted: part of the candidates that start from their target instead, corrupted to a
            random level: the landscape is then learned around the data, too.
    """

    def __init__(
        self,
        steps: int = 2,
        step_size: float = 1.0,
        start: float = 1.0,
        told: bool = False,
        corrupted: float = 0.0,
    ) -> None:
        super().__init__()
        _require(steps >= 1, "steps", "at least 1", steps)
        _require(step_size > 0, "step_size", "positive", step_size)
        _require(start >= 0, "start", "0 or more", start)
        _require(0 <= corrupted <= 1, "corrupted", "in [0, 1]", corrupted)
        self.steps, self.start, self.corrupted = steps, start, corrupted
        self.level_conditioned = told  # type: ignore[misc]  # set for each instance, read-only
        self.step_size = nn.Parameter(torch.tensor(float(step_size)))

    def draw(self, target: Tensor) -> dict[str, Any]:
        if not self.start and not self.corrupted:
            return {}  # what is nothing but zeros is made where it is needed
        normal = torch.randn_like(self.space.empty(target))
        start = self.space.start(target, self.start * normal)
        if self.corrupted:
            level, which = torch.rand(2, *target.shape[:2], device=target.device)
            near = self.space.start(target, normal, level)
            which = which.reshape(*which.shape, *(1 for _ in normal.shape[2:]))
            start = torch.where(which < self.corrupted, near, start)
        return {"normal": start}

    def forward(
        self, energy: EnergyFn, target: Tensor, draws: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        start = draws["normal"] if draws else self.space.empty(target)
        found = descend(
            energy,
            start,
            steps=self.steps,
            cut_graph=True,
            final_energy=False,
            **self.descent_options(self.steps, learned=True),
        )
        losses = torch.stack([self.space.error(x, target).mean() for x in found.path[1:]])
        metrics = {"last_step_loss": losses[-1].detach(), "step_size": self.step_size.detach()}
        return losses.mean(), metrics

    def descent_options(
        self, steps: int, level: float = 0.0, device: torch.device | None = None,
        *, learned: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        size = self.step_size if learned else self.step_size.detach()
        chosen: dict[str, Any] = {
            "step_size": size.clamp(min=1e-4),
            "mirror": self.space.mirror,
            "zero_start": self.start == 0 and not (learned and self.corrupted),
        }
        if self.level_conditioned:
            # Past the steps that it was trained for, the last one is repeated.
            done = torch.arange(steps + 1, device=size.device) / self.steps
            chosen["levels"] = done.clamp(max=(self.steps - 1) / self.steps)
        return chosen


class S2(Objective):
    """EBT's System 2 recipe (Gladstone et al. 2025, section 3): a landscape to think in.

    Langevin noise, a random number of steps, a random step size for each unit, loss on the last
    step alone with the graph cut before it, and a replay buffer from which half a batch more goes
    on where earlier descents ended.

    Args:
        steps: inclusive range of N.
        step_size: fixed a.
        step_size_range: each unit's a is multiplied by a factor from U[low, high].
        noise: first and last standard deviation of the Langevin noise (cosine in between).
        momentum: Nesterov's mu.
        replay: rows kept; 0 for none.
        replay_fraction: replayed rows in a batch, as a fraction of it.
        start: standard deviation of the first candidates.
    """

    def __init__(
        self,
        steps: tuple[int, int] = (2, 3),
        step_size: float = 1.0,
        step_size_range: tuple[float, float] = (0.5, 2.0),
        noise: tuple[float, float] = (0.2, 0.002),
        momentum: float = 0.0,
        replay: int = 192,
        replay_fraction: float = 0.5,
        start: float = 1.0,
    ) -> None:
        super().__init__()
        _require(1 <= steps[0] <= steps[1], "steps", "an increasing range from 1 on", steps)
        _require(step_size > 0, "step_size", "positive", step_size)
        low, high = step_size_range
        _require(0 < low <= high, "step_size_range", "positive and increasing", step_size_range)
        _require(min(noise) >= 0, "noise", "not negative", noise)
        _require(0 <= momentum < 1, "momentum", "in [0, 1)", momentum)
        _require(replay >= 0, "replay", "0 or more rows", replay)
        _require(replay_fraction > 0, "replay_fraction", "positive", replay_fraction)
        self.steps = (int(steps[0]), int(steps[1]))
        self.step_size, self.step_size_range = step_size, step_size_range
        self.noise, self.momentum, self.noisy = cosine_noise(*noise), momentum, max(noise) > 0
        self.start = start
        self.replay = ReplayBuffer(replay) if replay else None
        self.replay_fraction = replay_fraction

    def draw(self, target: Tensor) -> dict[str, Any]:
        low, high = self.steps
        steps = int(torch.randint(low, high + 1, ()))
        shrink, stretch = self.step_size_range
        factor = torch.rand(target.shape[:2], device=target.device)
        empty = self.space.empty(target)
        shape = (empty.shape[0], steps, *empty.shape[1:])
        return {
            "normal": self.space.start(target, self.start * torch.randn_like(empty)),
            "steps": steps,
            "step_size": self.step_size * (shrink + (stretch - shrink) * factor),
            "normals": torch.randn(shape, device=target.device) if self.noisy else None,
        }

    def forward(
        self, energy: EnergyFn, target: Tensor, draws: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        found = descend(
            energy,
            draws["normal"],
            steps=draws["steps"],
            step_size=draws["step_size"],
            noise=self.noise,
            normals=draws["normals"],
            momentum=self.momentum,
            mirror=self.space.mirror,
            cut_graph=True,
            final_energy=False,
        )
        metrics = {"grad_norm": found.grad_norms[-1].mean()}
        if self.replay is not None:
            metrics["candidate"] = found.candidate.detach()
        return self.space.error(found.candidate, target).mean(), metrics

    def descent_options(
        self, steps: int, level: float = 0.0, device: torch.device | None = None
    ) -> dict[str, Any]:
        return {
            "step_size": self.step_size,
            "noise": self.noise,
            "momentum": self.momentum,
            "mirror": self.space.mirror,
        }


class Contrastive(Objective):
    """Classical energy-based training: demonstrations down, the model's own samples up.

        negatives x^-: M short Langevin chains from noise (Du & Mordatch 2019, "Implicit
        Generation and Generalization in Energy-Based Models")
        loss = InfoNCE(E(y), E(x^-)) + regularizer * mean(E^2)

    Args:
        negatives: M.
        steps: length of a chain.
        step_size: its step size.
        noise: Langevin standard deviation, first and last.
        regularizer: keeps energies near zero, which InfoNCE leaves free.
    """

    def __init__(
        self,
        negatives: int = 8,
        steps: int = 4,
        step_size: float = 0.1,
        noise: tuple[float, float] = (0.2, 0.002),
        regularizer: float = 0.001,
    ) -> None:
        super().__init__()
        _require(negatives >= 1, "negatives", "at least 1", negatives)
        _require(steps >= 1, "steps", "at least 1", steps)
        _require(step_size > 0, "step_size", "positive", step_size)
        _require(min(noise) >= 0, "noise", "not negative", noise)
        _require(regularizer >= 0, "regularizer", "0 or more", regularizer)
        self.negatives, self.steps, self.step_size = negatives, steps, step_size
        self.noise, self.regularizer = cosine_noise(*noise), regularizer

    def draw(self, target: Tensor) -> dict[str, Any]:
        many = target.repeat_interleave(self.negatives, dim=1)
        shape = (many.shape[0], self.steps, *many.shape[1:])
        normals = torch.randn(shape, device=many.device, dtype=many.dtype)
        return {"normal": torch.randn_like(many), "normals": normals}

    def forward(
        self, energy: EnergyFn, target: Tensor, draws: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            found = descend(
                energy,
                draws["normal"],
                steps=self.steps,
                normals=draws["normals"],
                final_energy=False,
                **self.descent_options(self.steps),
            )
        both = energy(torch.cat([target, found.candidate.detach()], dim=1), None)
        units = target.shape[1]
        positive = both[:, :units].flatten().unsqueeze(1)
        negatives = both[:, units:].reshape(len(positive), -1)
        loss = info_nce(positive, negatives) + self.regularizer * both.square().mean()
        return loss, {"energy_gap": (negatives.mean() - positive.mean()).detach()}

    def descent_options(
        self, steps: int, level: float = 0.0, device: torch.device | None = None
    ) -> dict[str, Any]:
        # Gradients of a classifier-like landscape vary by orders of magnitude: clip each unit's.
        return {"step_size": self.step_size, "noise": self.noise, "max_grad_norm": 10.0}


OBJECTIVES: dict[str, type[Objective]] = {
    "flow": Flow,
    "equilibrium": Equilibrium,
    "s1": S1,
    "s2": S2,
    "contrastive": Contrastive,
}
