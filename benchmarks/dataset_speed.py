"""Speed of reading windows: ``python -m benchmarks.dataset_speed path=LEROBOT_DATA_SET``.

It measures windows per second of `Windows`, resident and streamed from the frame cache, and of
LeRobot's own data loader on the same files, in turns within one run. LeRobot runs in the virtual
environment of ``make test-lerobot``. The frame cache is filled before; the time for it is stored.
It also measures the share of an update that waits for data, and the memory of one epoch on ten
copies of the data set, whose frames exceed the memory budget ten times. The result is stored in
``docs/results/dataset_speed.json``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.command_line import command_line, parse_options
from benchmarks.device import DEVICE, device_name
from benchmarks.results import store_json
from benchmarks.tables.datasets import dataset_speed
from benchmarks.training import compose_config
from ebt_policy.data.windows import Windows, fit_normalizer
from ebt_policy.policies import build_policy
from ebt_policy.policies.task_config import PolicyTaskConfig
from ebt_policy.training.batches import BatchSampler

LOADER = Path(__file__).with_name("lerobot_loader.py")
BATCH, BATCHES = 64, 20
REPEATS = 10  # copies of the data set in the measurement of memory


def load_windows(path: str | list[str], size: list[int], resident_gb: float) -> Windows:
    """Return the windows of a data set with frames of a size."""
    config = compose_config("task=dataset")
    section = {**config["task"], "path": path, "image_size": size, "resident_gb": resident_gb}
    task = PolicyTaskConfig.from_config({**config, "task": section}).resolved()
    return task.windows(task.demonstrations()[0], DEVICE)


def windows_per_second(windows: Windows, batches: int = BATCHES) -> float:
    """Return the rate at which a training would receive windows if it took no time."""
    sampler = BatchSampler(windows, BATCH, seed=0)
    sampler.batch(0)
    start = time.perf_counter()
    for step in range(1, batches + 1):
        sampler.batch(step)
    return batches * BATCH / (time.perf_counter() - start)


def lerobot_per_second(python: Path, path: str, horizon: int, workers: int, batches: int) -> float:
    """Return windows per second of LeRobot's data loader."""
    arguments = [path, BATCH, horizon, workers, batches]
    result = subprocess.run(
        [python, LOADER, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])["windows_per_s"]


def waiting_share(windows: Windows, vision: str, updates: int) -> dict[str, float]:
    """Return seconds of an update and the share of it that waits for data."""
    config = compose_config("task=dataset", f"vision={vision}")
    shape = {
        "obs_dim": windows.obs.shape[1], "action_dim": windows.action.shape[1],
        "cameras": {name: list(x.shape[1:3]) for name, x in windows.images.items()},
        "horizon": windows.horizon, "n_obs_steps": windows.n_obs_steps,
        "n_action_steps": windows.n_action_steps,
    }  # fmt: skip
    policy = build_policy({**config, "shape": shape}, fit_normalizer(windows, None)).to(DEVICE)
    optimizer, sampler = torch.optim.AdamW(policy.parameters()), BatchSampler(windows, BATCH, 0)
    sampler.batch(0)
    waited, start = 0.0, time.perf_counter()
    for step in range(1, updates + 1):
        before = time.perf_counter()
        batch = sampler.batch(step)
        waited += time.perf_counter() - before  # On a GPU, this includes earlier computation.
        loss, _ = policy.train().loss(policy.normalize(batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    total = time.perf_counter() - start
    return {"update_s": total / updates, "waiting": waited / total}


def streaming_memory(path: str, size: list[int]) -> dict[str, float]:
    """Train on a data set that is `REPEATS` times larger than the budget of resident frames.

    The data set consists of copies of the data set, which are decoded and cached anew.

    Returns:
        Sizes in MB: all frames, the budget, and the most memory that decoding and reading add.
    """
    before = peak = anonymous_memory()
    budget = frame_bytes(load_windows(path, size, 0.0)) / 1e9
    windows = load_windows([path] * REPEATS, size, budget)
    assert windows.is_streamed
    peak = max(peak, anonymous_memory())
    sampler = BatchSampler(windows, BATCH, seed=0)
    for step in range(len(windows) // BATCH):  # one epoch
        sampler.batch(step)
        peak = max(peak, anonymous_memory())
    sampler.close()
    return {
        "frames_mb": frame_bytes(windows) / 1e6,
        "budget_mb": budget * 1e3,
        "added_mb": (peak - before) / 1e6,
    }


def frame_bytes(windows: Windows) -> int:
    """Return the size of all frames."""
    return sum(images.nbytes for images in windows.images.values())


def anonymous_memory() -> int:
    """Return the memory of this process in bytes, without file pages that the system can drop."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no RssAnon.")


def main() -> None:
    options = parse_options(path="", rounds=3, lerobot=".venv-lerobot", workers=2, updates=3)
    torch.set_num_threads(1)
    sizes = {"96 x 128": [96, 128], "480 x 640": [480, 640]}
    jobs: dict[str, Callable[[], float]] = {}
    caching_s: dict[str, float] = {}
    for name, size in sizes.items():
        start = time.perf_counter()
        streamed = load_windows(options.path, size, 0.0)
        caching_s[name] = time.perf_counter() - start
        jobs[f"streamed, {name}"] = lambda w=streamed: windows_per_second(w)
    small = load_windows(options.path, sizes["96 x 128"], 100.0)
    jobs["resident, 96 x 128"] = lambda: windows_per_second(small, 5 * BATCHES)
    python = Path(options.lerobot) / "bin" / "python"
    for workers in (0, options.workers):
        jobs[f"LeRobot, 480 x 640, {workers} workers"] = lambda n=workers: lerobot_per_second(
            python, options.path, small.horizon, n, 12 * max(1, n)
        )
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(options.rounds):
        for name, job in jobs.items():
            rates[name].append(job())
    streamed = load_windows(options.path, sizes["96 x 128"], 0.0)
    result = {
        "windows_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "training": {
            vision: waiting_share(streamed, vision, options.updates)
            for vision in ("small", "resnet18")
        },
        "memory": streaming_memory(options.path, sizes["96 x 128"]),
        "caching_s": caching_s,
        "batch": BATCH,
        "horizon": small.horizon,
        "rows": int(small.obs.shape[0]),
        "torch": torch.__version__,
        "device": device_name(),
        "command": command_line("dataset_speed"),
    }
    store_json("dataset_speed", result)
    print(dataset_speed(result))


if __name__ == "__main__":
    main()
