"""The plug-in for LeRobot beside its own Diffusion Policy: ``python -m benchmarks.lerobot``.

It writes the human demonstrations of Push-T as a LeRobot data set, with the observations of
LeRobot's own environment. ``lerobot-train`` trains both policies on it, with equal numbers of
parameters and updates, and ``lerobot-eval`` evaluates them on the same seeds. They run in the
virtual environment of ``make test-lerobot``. The result is stored in ``docs/results/lerobot.json``.
Finished trainings and evaluations in ``folder`` are not repeated; unfinished trainings are resumed.
Other values of ``updates``, ``batch`` or ``lr`` need another ``folder``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from safetensors import safe_open

from benchmarks.command_line import command_line, parse_options
from benchmarks.device import device_name
from benchmarks.results import claim_folder, store_json
from benchmarks.tables.policies import compared
from ebt_policy.data.dataset import Feature, Role
from ebt_policy.data.formats.lerobot_writer import LeRobotWriter
from ebt_policy.data.push_t import load_push_t
from ebt_policy.evaluation.statistics import mean_ci, paired_difference, success_rate
from ebt_policy.io.atomic_write import atomic_folder

NORMALIZED = ("STATE", "ENV", "ACTION")
# The U-Net is as large as the transformer with its energy: 0.37 million parameters.
POLICIES: dict[str, list[str]] = {
    "ebt": ["--policy.type=ebt"],
    "diffusion": [
        "--policy.type=diffusion", "--policy.horizon=16", "--policy.n_action_steps=8",
        "--policy.down_dims=[24,40,64]", "--policy.diffusion_step_embed_dim=32",
        # By default, the keypoints would not be normalised.
        f"--policy.normalization_mapping={json.dumps(dict.fromkeys(NORMALIZED, 'MIN_MAX'))}",
    ],
}  # fmt: skip
# Name of an entry -> its policy and options of its evaluation.
ENTRIES: dict[str, tuple[str, list[str]]] = {
    "LeRobot diffusion": ("diffusion", []),
    "LeRobot ebt": ("ebt", []),
    "LeRobot ebt (steps 8)": ("ebt", ["--policy.num_inference_steps=8"]),
}
ENV_ID = "gym_pusht:gym_pusht/PushT-v0"
CHECKPOINT = Path("checkpoints/last/pretrained_model")


def write_demonstrations(folder: Path) -> None:
    """Write the human demonstrations as a LeRobot data set with keypoints of the block."""
    episodes, _ = load_push_t(demos="human")
    state = episodes.arrays["state"]
    features = {
        "observation.state": state[:, :2],
        "observation.environment_state": keypoints(state[:, 2:]),
        "action": episodes.arrays["action"],
    }
    described = [
        Feature(name, "float32", rows.shape[1:], Role.ACTION if name == "action" else Role.STATE)
        for name, rows in features.items()
    ]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        writer = LeRobotWriter(temporary, described, fps=10)
        for start, end in zip([0, *episodes.ends[:-1]], episodes.ends, strict=True):
            rows = {name: values[start:end].astype("f4") for name, values in features.items()}
            writer.add(rows, {}, "Push the T onto its target.")
        writer.finish()
        writer.close()


def keypoints(poses: np.ndarray) -> np.ndarray:
    """Return LeRobot's keypoints (N, 16) of blocks with poses (N, 3), in px and rad."""
    env: Any = gymnasium.make(ENV_ID, obs_type="environment_state_agent_pos")
    env.reset(seed=0)
    block = env.unwrapped.block
    block.angle, block.position = 0.0, (0.0, 0.0)
    points = env.unwrapped.get_keypoints(env.unwrapped._block_shapes)  # (8, 2)
    cos, sin = np.cos(poses[:, 2:]), np.sin(poses[:, 2:])
    x = cos * points[:, 0] - sin * points[:, 1] + poses[:, :1]
    y = sin * points[:, 0] + cos * points[:, 1] + poses[:, 1:2]
    return np.stack([x, y], axis=-1).reshape(len(poses), 16)


def train(bin: Path, options: Any, name: str, seed: int) -> Path:
    """Train a policy, or resume its training; return the folder of the run."""
    folder = Path(options.folder).resolve()
    run = folder / f"{name}-seed{seed}"
    settings = run / CHECKPOINT / "train_config.json"
    if (run / "checkpoints" / f"{options.updates:06d}").exists():
        return run
    if settings.exists():
        arguments = [f"--config_path={settings}", "--resume=true"]
    else:
        shutil.rmtree(run, ignore_errors=True)  # It was interrupted before its first checkpoint.
        arguments = [
            "--dataset.repo_id=local/push_t", f"--dataset.root={folder / 'push_t'}",
            f"--output_dir={run}", f"--seed={seed}", f"--steps={options.updates}",
            f"--batch_size={options.batch}", "--num_workers=0", "--save_freq=1000",
            f"--log_freq={max(1, options.updates // 20)}", "--wandb.enable=false",
            *POLICIES[name], f"--policy.optimizer_lr={options.lr}",
            "--policy.device=cpu", "--policy.push_to_hub=false",
        ]  # fmt: skip
    call(bin / "lerobot-train", arguments, run.with_suffix(".log"))
    return run


def evaluate(bin: Path, options: Any, run: Path, inference: list[str]) -> dict[str, Any]:
    """Play episodes of LeRobot's Push-T; return the result of ``lerobot-eval``."""
    suffix = "".join(f"-{option.partition('=')[2]}" for option in inference)
    output = run / f"eval-{options.episodes}{suffix}"
    if not (output / "eval_info.json").exists():
        arguments = [
            f"--policy.path={run / CHECKPOINT}", "--policy.device=cpu", "--env.type=pusht",
            "--env.obs_type=environment_state_agent_pos", f"--eval.n_episodes={options.episodes}",
            f"--eval.batch_size={min(50, options.episodes)}", "--eval.use_async_envs=false",
            "--seed=100000", f"--output_dir={output}", *inference,
        ]  # fmt: skip
        call(bin / "lerobot-eval", arguments, run.with_suffix(".log"))
    return json.loads((output / "eval_info.json").read_text())


def call(program: Path, arguments: list[str], log: Path) -> None:
    """Run a program of LeRobot offline; its output is appended to a log."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("a") as file:
        subprocess.run([program, *arguments], env=env, stdout=file, stderr=file, check=True)


def parameter_count(run: Path) -> int:
    """Return the number of trained parameters, without their averages and statistics."""
    with safe_open(run / CHECKPOINT / "model.safetensors", "np") as weights:
        names = [n for n in weights.keys() if n.startswith(("model.", "diffusion."))]  # noqa: SIM118
        return sum(int(np.prod(weights.get_slice(name).get_shape())) for name in names)


def main() -> None:
    options = parse_options(
        folder="runs/lerobot", venv=".venv-lerobot", seeds=3, updates=4000, batch=32, lr=1e-3,
        episodes=100, parallel=1,
    )  # fmt: skip
    bin = Path(options.venv).resolve() / "bin"
    claim_folder(Path(options.folder), updates=options.updates, batch=options.batch, lr=options.lr)
    if not (Path(options.folder) / "push_t").exists():
        write_demonstrations(Path(options.folder) / "push_t")

    def train_and_evaluate(job: tuple[int, str]) -> tuple[Path, dict[str, dict[str, Any]]]:
        seed, policy = job
        run = train(bin, options, policy, seed)
        return run, {
            name: evaluate(bin, options, run, inference)
            for name, (evaluated, inference) in ENTRIES.items()
            if evaluated == policy
        }

    jobs = [(seed, name) for seed in range(options.seeds) for name in POLICIES]
    with ThreadPoolExecutor(options.parallel) as pool:
        done = dict(zip(jobs, pool.map(train_and_evaluate, jobs), strict=True))
    results = {
        name: [done[seed, policy][1][name] for seed in range(options.seeds)]
        for name, (policy, _) in ENTRIES.items()
    }
    scores: dict[str, dict[str, list[list[float]]]] = {}
    for name in ENTRIES:
        episodes = [result["per_task"][0]["metrics"] for result in results[name]]
        scores[name] = {
            "score": [metrics["max_rewards"] for metrics in episodes],
            "success": [[float(s) for s in metrics["successes"]] for metrics in episodes],
        }
    summary = {"score": mean_ci, "success": success_rate}
    entries = [
        {
            "name": name,
            "parameters": parameter_count(done[0, policy][0]),
            "train_steps": options.updates,
            "eval_s": [result["overall"]["eval_ep_s"] for result in results[name]],
            **{metric: summary[metric](values) for metric, values in scores[name].items()},
        }
        for name, (policy, _) in ENTRIES.items()
    ]  # fmt: skip
    first, *others = ENTRIES
    paired = [
        {"a": first, "b": other, "metric": metric}
        | paired_difference(scores[first][metric], scores[other][metric])
        for other in others
        for metric in summary
    ]
    result = {
        "entries": entries, "paired": paired, "episodes": options.episodes,
        "batch": options.batch, "lr": options.lr, "device": device_name(),
        "command": command_line("lerobot"),
    }  # fmt: skip
    store_json("lerobot", result)
    print(compared(result))


if __name__ == "__main__":
    main()
