"""Policies of a real humanoid, without an environment: errors on held-out episodes.

The recording of a Unitree G1 is read by ``task=dataset``: ten episodes with frames of the head
camera (LeRobot 2.1), and joint angles of one hundred episodes.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.device import DEVICE
from benchmarks.results import store_text
from benchmarks.study import StudyContext, TrainingCommand
from benchmarks.training import train_all
from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.io.local_data import local_data
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.evaluate import evaluate_policies

# Model -> inference options of its entries.
ENTRIES = {
    "ebt": ("steps=2,num_candidates=8", "steps=2,num_candidates=1"),
    "flow_matching": ("steps=2,num_candidates=8,select=medoid", "steps=2,num_candidates=1"),
    "diffusion": ("scheduler=ddim,steps=10,num_candidates=1",),
    "bc": ("",),
}
RATE_HZ = 30


@dataclass(frozen=True)
class HeldOutG1:
    """Training of every model with every seed, and the held-out report.

    The study has the option ``updates`` (of the energy policy).

    Attributes:
        has_cameras: whether to use the ten episodes with frames, or the numbers of all episodes.
        fraction: fraction of the updates to train.
        ratio: number of updates of the other models in the time of one of the energy policy.
        batch_size: batch size of all models.
    """

    has_cameras: bool
    fraction: float = 1.0
    ratio: float = 1.47
    batch_size: int = 128

    def __call__(self, context: StudyContext) -> dict[str, Any]:
        options, folder = context.options, context.folder / context.result
        folder.mkdir(parents=True, exist_ok=True)
        path = recording() if self.has_cameras else numbers(folder / "g1.zarr")
        updates = {
            model: round(options.updates * self.fraction * (1 if model == "ebt" else self.ratio))
            for model in ENTRIES
        }
        commands = [
            TrainingCommand(model, seed, folder, (
                "task=dataset", f"task.path={path}", f"model={model}", "train.minutes=null",
                f"train.steps={updates[model]}", f"train.batch_size={self.batch_size}",
                *shlex.split(options.overrides),
            ))
            for seed in range(options.seeds) for model in ENTRIES
        ]  # fmt: skip
        train_all([commands], options.parallel)
        result = evaluate_policies(
            [
                f"{folder / model}-seed*{'@' if inference else ''}{inference}"
                for model, entries in ENTRIES.items()
                for inference in entries
            ],
            EvalConfig(1, EVALUATION_SEED, 0, 1),  # There are no episodes to play.
            output=context.output, device=DEVICE, command=context.command,
        )  # fmt: skip
        table = (context.output / "table.md").read_text()
        store_text(f"{context.result}.md", table, context.results)
        return result


def recording() -> Path:
    """Return the recording with frames in the data folder."""
    return _required("g1_lerobot_v21")


def numbers(store: Path) -> Path:
    """Write the joint angles of all episodes to an episode store, and return it."""
    if not store.exists():
        with np.load(_required("g1_pick_bottle/lowdim.npz")) as arrays:
            rows = {"obs": arrays["state"], "action": arrays["action"]}
            ends, names = arrays["episode_ends"], [str(name) for name in arrays["joint_names"]]
        attrs = {"rate_hz": RATE_HZ, "names": {"obs": names, "action": names}}
        write_episodes(store, Episodes(rows, ends, attrs))
    return store


def _required(name: str) -> Path:
    path = local_data(name)
    if path is None:
        sys.exit(f"error: {name} is not in $EBT_POLICY_DATA; the study needs this recording.")
    return path
