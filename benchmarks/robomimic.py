"""robomimic's algorithms beside the algorithm ``ebt``: ``python -m benchmarks.robomimic``.

A scripted expert records demonstrations of Lift. robomimic's trainer trains ``ebt``, BC and BC-RNN
with their default networks and equal numbers of updates. ``ebt_policy.eval`` plays their
checkpoints on the same seeds. The result is stored in ``docs/results/robomimic.json``. Finished
trainings and episodes in ``folder`` are not repeated. Other values of ``updates`` or
``demonstrations`` need another ``folder``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.command_line import command_line, parse_options
from benchmarks.device import device_name
from benchmarks.results import claim_folder, store_json
from benchmarks.tables.policies import compared
from ebt_policy.io.atomic_write import atomic_write

# The default of ebt. BC and BC-RNN have 1e-4, which is worse in a training this short.
OPTIMIZER = {"optim_params": {"policy": {"learning_rate": {"initial": 1e-3}}}}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ebt": {"algo_name": "ebt", "algo": OPTIMIZER},
    "bc_rnn": {
        "algo_name": "bc", "train": {"seq_length": 10},
        "algo": {
            "gmm": {"enabled": True}, "rnn": {"enabled": True, "horizon": 10}, **OPTIMIZER,
        },
    },
    "bc": {"algo_name": "bc", "algo": OPTIMIZER},
}  # fmt: skip
KEYS = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"]


def train(options: Any, name: str, seed: int, data: Path) -> Path:
    """Train with robomimic; return the checkpoint of the last epoch."""
    folder = Path(options.folder).resolve()
    checkpoint = folder / f"{name}-seed{seed}.pth"
    if checkpoint.exists():
        return checkpoint
    algorithm = ALGORITHMS[name]
    config = {
        **algorithm,
        "experiment": {
            "name": f"{name}-seed{seed}", "rollout": {"enabled": False},
            "epoch_every_n_steps": 100, "save": {"every_n_epochs": options.updates // 100},
        },
        "train": {
            "data": str(data), "output_dir": str(folder / "robomimic"), "cuda": False,
            "num_epochs": options.updates // 100, "batch_size": 100, "seed": seed,
            **algorithm.get("train", {}),
        },
        "observation": {"modalities": {"obs": {"low_dim": KEYS}}},
    }  # fmt: skip
    file = folder / f"{name}-seed{seed}.json"
    atomic_write(file, json.dumps(config, indent=1))
    output = folder / "robomimic" / f"{name}-seed{seed}"
    shutil.rmtree(output, ignore_errors=True)  # An interrupted training cannot be resumed.
    call("ebt_policy.integrations.robomimic", "train", f"--config={file}")
    (trained,) = output.glob(f"*/models/model_epoch_{options.updates // 100}.pth")
    shutil.copyfile(trained, temporary := checkpoint.with_suffix(".writing"))
    temporary.rename(checkpoint)
    return checkpoint


def call(module: str, *arguments: str) -> None:
    """Run a module with one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", module, *arguments], env=env, check=True)


def main() -> None:
    options = parse_options(
        folder="runs/robomimic", seeds=3, updates=2000, demonstrations=20, episodes=50
    )
    folder = Path(options.folder)
    claim_folder(folder, updates=options.updates, demonstrations=options.demonstrations)
    data = folder.resolve() / f"lift-{options.demonstrations}.hdf5"
    if not data.exists():
        count = f"episodes={options.demonstrations}"
        call("ebt_policy.record", "task=lift", count, f"output={data}", "workers=2")
    for seed in range(options.seeds):
        for name in ALGORITHMS:
            train(options, name, seed, data)
    output = folder / f"evaluation-{options.episodes}"
    call(
        "ebt_policy.eval", *(f"checkpoint={folder}/{name}-seed*.pth" for name in ALGORITHMS),
        "allow_pickle=true", f"episodes={options.episodes}", "videos=0", "workers=2",
        f"output={output}",
    )  # fmt: skip
    result = json.loads((output / "summary.json").read_text())
    result |= {
        "demonstrations": options.demonstrations, "updates": options.updates,
        "device": device_name(), "command": command_line("robomimic"),
    }  # fmt: skip
    store_json("robomimic", result)
    print(compared(result))


if __name__ == "__main__":
    main()
