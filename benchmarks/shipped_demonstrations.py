"""The Push-T demonstrations of the package: ``python -m benchmarks.shipped_demonstrations``.

`pretrained:push_t` records successful episodes with four steps and the best of eight candidates.
Episodes end after 200 steps: a policy trained on longer ones, in which the demonstrator corrects
its errors for a long time, succeeds less often (see docs/experiments.md). Values are rounded far
below the precision of a demonstration, so that the file compresses well.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.command_line import parse_options
from ebt_policy.cli.composition import compose_config
from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.policies.recording import find_demonstrator, record_demonstrations
from ebt_policy.policies.task_config import PolicyTaskConfig

EPISODES = 500
MAX_STEPS = 200
DECIMALS = np.array([2, 2, 2, 2, 4])  # of a state: agent x, y and block x, y, px; angle, rad


def write_rounded(path: Path, episodes: Episodes) -> None:
    """Write states and actions as an episode store; observations are computed from the states."""
    scale = 10.0**DECIMALS
    arrays = {
        "state": (np.round(episodes.arrays["state"] * scale) / scale).astype(np.float32),
        "action": episodes.arrays["action"].round(1),
    }
    write_episodes(path, Episodes(arrays, episodes.ends, episodes.attrs))


def show(successes: int, attempts: int) -> None:
    """Print the progress from time to time."""
    if attempts % 100 == 0:
        print(f"{successes} successes in {attempts} attempts", flush=True)


def main() -> None:
    """Run the command line."""
    options = parse_options(output="ebt_policy/data/demos/push_t_expert.zarr.zip")
    config = compose_config("record", ["task=push_t", f"task.env.max_steps={MAX_STEPS}"])
    demonstrator = find_demonstrator(
        PolicyTaskConfig.from_config(config), "pretrained:push_t@steps=4", perturb=None
    )
    record_demonstrations(
        demonstrator,
        EPISODES,
        options.output,
        write=write_rounded,
        on_progress=show,
    )


if __name__ == "__main__":
    main()
