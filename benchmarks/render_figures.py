"""Animation of the README: ``python -m benchmarks.render_figures [checkpoint=RUN] [seed=100003]``.

It plays one episode and writes ``docs/assets/push_t.gif``. The left panel shows the robot with its
candidate chunks. The right panel shows their descent in a plane through the energy landscape, the
plane in which they differ most. The first chunks are shown slowly, the others fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.command_line import parse_options
from ebt_policy.envs.push_t_geometry import WORKSPACE_SIZE
from ebt_policy.envs.rollout import batch_observations
from ebt_policy.evaluation.figure_style import GREY, ORANGE, STYLE
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.policies.energy_slice import EnergySlice, slice_energy
from ebt_policy.policies.task_config import PolicyTaskConfig

STEPS = 4
SLOW = 5  # chunks whose descent is shown step by step
MAX_CHUNKS = 26


class ChunkPanels:
    """The two panels of the animation for one chunk, which are drawn after each step."""

    def __init__(self, plane: EnergySlice) -> None:
        self.plane = plane
        self.figure = Figure(figsize=(6.6, 3.5), dpi=100, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        axes: Any = self.figure.subplots(1, 2)
        self.robot, self.land = axes
        self.figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.91, wspace=0.03)
        for ax, title in ((self.robot, "candidate chunks"), (self.land, "their energy landscape")):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            ax.set_title(title, fontsize=10, loc="left")
        low, high = float(plane.energy.min()), float(plane.energy.max())
        self.land.contourf(
            plane.x, plane.y, plane.energy, cmap="viridis", norm=PowerNorm(0.5, low, high),
            levels=low + (high - low) * np.linspace(0, 1, 17) ** 2,
        )  # fmt: skip
        self.land.set_xlim(plane.x.min(), plane.x.max())
        self.land.set_ylim(plane.y.min(), plane.y.max())

    def draw(self, frame: np.ndarray, step: int, executed: int | None = None) -> Image.Image:
        """Draw the candidates after some steps.

        Args:
            frame: image of the environment (H, W, 3).
            step: number of descent steps.
            executed: number of executed actions. The robot's panel then shows only the rest of the
                selected candidate. None if the candidates still descend.
        """
        plane, best, artists = self.plane, self.plane.best, []
        artists.append(self.robot.imshow(frame, extent=(0, WORKSPACE_SIZE, WORKSPACE_SIZE, 0)))
        self.robot.set_xlim(0, WORKSPACE_SIZE)
        self.robot.set_ylim(WORKSPACE_SIZE, 0)
        for i, chunk in enumerate(plane.chunks[step]):
            if i != best and executed is None:
                artists += self.robot.plot(*chunk.T, color=GREY, linewidth=0.8, alpha=0.7)
        chosen = plane.chunks[step][best][1 + (executed or 0) :]
        artists += self.robot.plot(*chosen.T, "-o", color=ORANGE, linewidth=1.8, markersize=2.5)
        for i, path in enumerate(plane.paths):
            colour, order = (ORANGE, 3) if i == best else ("white", 2)
            trail = path[: step + 1].T
            artists += self.land.plot(*trail, color=colour, linewidth=0.9, alpha=0.8, zorder=order)
            artists += self.land.plot(*trail[:, -1:], "o", color=colour, markersize=5, zorder=order)
        self.canvas.draw()
        image = np.asarray(self.canvas.buffer_rgba())[..., :3].copy()
        for artist in artists:
            artist.remove()
        return Image.fromarray(image)


def render_episode(policy: EnergyPolicy, seed: int) -> Iterator[tuple[Image.Image, int]]:
    """Yield the images of an episode with their durations, ms."""
    spec = PolicyTaskConfig.from_config(policy.config).env_spec()
    env = spec.make(render_mode="rgb_array")
    obs, _ = env.reset(seed=seed)
    recent, terminated = [obs] * spec.n_obs_steps, False
    for number in range(MAX_CHUNKS):
        window = batch_observations([spec.stack_history(recent[-spec.n_obs_steps :])])
        plane = slice_energy(policy, window, seed=number)
        scene, slow = ChunkPanels(plane), number < SLOW
        frame = np.asarray(env.render())
        for step in range(STEPS + 1) if slow else (STEPS,):
            yield scene.draw(frame, step), 350 if slow else 150
        plan = spec.future_actions(plane.chunks[-1][plane.best])
        for done, action in enumerate(plan[: spec.n_action_steps], 1):
            obs, _, terminated, _, _ = env.step(action)
            recent.append(obs)
            if done % (2 if slow else 4) == 0 or terminated:
                yield scene.draw(np.asarray(env.render()), STEPS, done), 100 if slow else 120
            if terminated:
                break
        if terminated:
            break
    yield scene.draw(np.asarray(env.render()), STEPS, spec.n_action_steps), 2500
    env.close()


def main() -> None:
    options = parse_options(checkpoint="runs/compare/ebt_12500-seed1", seed=100_003)
    policy = EnergyPolicy.from_checkpoint(options.checkpoint)
    policy.configure_inference(steps=STEPS)
    with mpl.rc_context(STYLE):
        frames, durations = zip(*render_episode(policy, options.seed), strict=True)
    quantized = [frame.quantize(64, dither=Image.Dither.NONE) for frame in frames]
    target = Path("docs/assets/push_t.gif")
    target.parent.mkdir(parents=True, exist_ok=True)
    quantized[0].save(
        target,
        save_all=True,
        append_images=quantized[1:],
        duration=durations,
        loop=0,
        optimize=True,
    )
    print(f"written to {target}: {len(quantized)} frames, {target.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
