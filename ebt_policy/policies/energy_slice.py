"""A plane through an energy landscape, the one in which the candidates of a policy differ most.

Shapes: M candidates, T horizon, A action dimension, N descent steps, W x H grid points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ebt_policy.policies.energy import EnergyPolicy

GRID = 41
CANDIDATES = 16


@dataclass
class EnergySlice:
    """Energy on a plane through the chosen chunk, and the descents projected into it.

    Attributes:
        x, y: (W,) and (H,) coordinates along the two principal axes, in network units.
        energy: (H, W) scores of the grid points.
        paths: (M, N + 1, 2) descents, projected into the plane.
        trace: (N + 1, M) scores of the candidates before each step and at the end.
        chunks: (N + 1, M, T, A) candidates before each step and at the end, in env units.
        energies: (M,) scores of the final candidates.
        best: index of the lowest final score.
    """

    x: np.ndarray
    y: np.ndarray
    energy: np.ndarray
    paths: np.ndarray
    trace: np.ndarray
    chunks: np.ndarray
    energies: np.ndarray
    best: int


def slice_energy(policy: EnergyPolicy, obs: dict[str, Tensor], *, seed: int = 0) -> EnergySlice:
    """Descend several candidates for one observation, and slice the landscape through the best.

    The plane is spanned by the first two principal components of the final candidates. Its energies
    are scores of finished candidates (see `EnergyPolicy.energies`).

    Args:
        obs: observation with a batch size of 1, as for `predict_chunk`.
        seed: seed of the candidates' noise.
    """
    device = policy.device
    inference_before = policy.inference
    policy.configure_inference(num_candidates=1)
    try:
        # Candidates are rows of a batch here, because all of them are needed, not only the best.
        device_obs = {name: value.to(device) for name, value in obs.items()}
        rows = {
            name: v.repeat(CANDIDATES, *(1 for _ in v.shape[1:])) for name, v in device_obs.items()
        }
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            result = policy.descend(policy.encode_observation(rows), generator=generator)
    finally:
        policy.inference = inference_before
    steps = torch.stack([p.flatten(1).cpu() for p in result.path])  # (N + 1, M, T * A)
    ends = steps[-1]
    with torch.no_grad():
        # Energies at different levels are not comparable, so all points are scored as finished.
        path_energies = [
            policy.energies(rows, policy.unnormalize_actions(rows["obs"], p)) for p in result.path
        ]
    trace = torch.stack(path_energies)[:, :, 0].cpu()
    final = trace[-1]
    best = int(final.argmin())
    centre = ends[best]
    axes = torch.linalg.svd(ends - ends.mean(0), full_matrices=False).Vh[:2]  # (2, T * A)
    paths = (steps - centre) @ axes.T  # (N + 1, M, 2)
    reach = 1.15 * paths.abs().amax(dim=(0, 1)).clamp(min=0.1)
    x, y = (torch.linspace(-float(r), float(r), GRID) for r in reach)
    points = centre + x.view(1, -1, 1) * axes[0] + y.view(-1, 1, 1) * axes[1]
    shape = (1, GRID * GRID, policy.shape.horizon, policy.shape.action_dim)
    chunks = policy.unnormalize_actions(device_obs["obs"], points.view(shape).to(device))
    surface = policy.energies(device_obs, chunks).view(GRID, GRID).cpu()
    path_actions = [policy.unnormalize_actions(rows["obs"], p[:, 0]) for p in result.path]
    return EnergySlice(
        x=x.numpy(),
        y=y.numpy(),
        energy=surface.numpy(),
        paths=paths.transpose(0, 1).numpy(),
        trace=trace.numpy(),
        chunks=torch.stack(path_actions).cpu().numpy(),
        energies=final.numpy(),
        best=best,
    )
