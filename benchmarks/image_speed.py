"""What an energy of images costs: ``python -m benchmarks.image_speed [size=2xs batch=32]``.

Settings: size, batch, rounds. One training update and one pass or step of restoring, of the energy
model against DiT and the refiner at equal size, of images of 32 x 32 pixels, eager and compiled,
timed in turns within one run; reported are medians and their ratios, and images a second. Writes
``docs/results/image_speed_DEVICE.json``. Weights are untrained: speed does not depend on them.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable
from typing import Any

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from benchmarks.settings import DEVICE, command, settings, store
from benchmarks.speed import in_turns, update_on
from ebt_policy.evaluation.tables import markdown
from ebt_policy.image.model import ImageModel, build_image_model
from ebt_policy.train import drop_unused_sections

SIDE, NOISE = 32, 100
MODELS = {"energy": "ebt", "refiner": "refiner", "DiT": "dit"}
PASSES = (1, 2, 10)  # of restoring; of the last, a pass's time is a part


def make(model: str, size: str) -> ImageModel:
    with initialize_config_module("ebt_policy.configs", version_base="1.3"):
        overrides = ["task=image", f"model={model}", f"size={size}"]
        cfg: Any = OmegaConf.to_container(compose("train", overrides), resolve=True)
    config = drop_unused_sections(cfg)
    shape = {"side": SIDE, "channels": 3, "patch": 4, "max_noise_level": NOISE, "classes": 0}
    torch.manual_seed(0)
    return build_image_model({**config, "shape": shape}).to(DEVICE)


def update(model: ImageModel, rows: int) -> Callable[[], None]:
    """One training update as a function."""
    batch = {
        "image": torch.rand(rows, 3, SIDE, SIDE, device=DEVICE) * 2 - 1,
        "label": torch.zeros(rows, dtype=torch.long, device=DEVICE),
    }
    return update_on(model, batch)


def restoring(model: ImageModel, rows: int, passes: int) -> Callable[[], Any]:
    """A batch restored in some passes."""
    noisy = torch.rand(rows, 3, SIDE, SIDE, device=DEVICE) * 2 - 1

    def run() -> Any:
        model.configure_inference(steps=passes)
        return model.restore(noisy, NOISE)

    return run


def restored(passes: int) -> str:
    """What restoring is called among the times."""
    return f"{passes} passes, eager"


def table(result: dict[str, Any]) -> str:
    """Milliseconds and ratios to DiT."""
    ms, rows = result["ms"], []
    timed = {"update, eager": 1, "update, compiled": 1, restored(PASSES[-1]): PASSES[-1]}
    for what, many in timed.items():
        times = {name: ms[f"{name}, {what}"] / many for name in MODELS}
        ratios = (f"{time:.1f} ms ({time / times['DiT']:.2f}x)" for time in times.values())
        rows.append((what if many == 1 else "pass, eager", *ratios))
    for passes in PASSES:
        if f"DiT, {restored(passes)}" not in ms:  # one and two were not timed on the GPU
            continue
        rates = [1e3 * result["batch"] / ms[f"{name}, {restored(passes)}"] for name in MODELS]
        rows.append((f"images a second, passes: {passes}", *(f"{rate:,.0f}" for rate in rates)))
    return markdown((f"batch of {result['batch']}", *MODELS), rows, left=1)


def main() -> None:
    given = settings(size="2xs", rounds=30, batch=32)
    jobs: dict[str, Callable[[], Any]] = {}
    for name, model in MODELS.items():
        jobs[f"{name}, update, eager"] = update(make(model, given.size), given.batch)
        compiled = make(model, given.size)
        compiled.compile()
        jobs[f"{name}, update, compiled"] = update(compiled, given.batch)
        frozen = make(model, given.size).eval().requires_grad_(False)
        for passes in PASSES:
            jobs[f"{name}, {restored(passes)}"] = restoring(frozen, given.batch, passes)
    times = in_turns(jobs, given.rounds, DEVICE)
    result = {
        "ms": {name: statistics.median(of) for name, of in times.items()},
        "size": given.size, "params": {n: make(m, given.size).parameter_count for n, m in
                                       MODELS.items()},
        "batch": given.batch, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.machine(),
        "command": command("image_speed"),
    }  # fmt: skip
    store(f"image_speed_{DEVICE.type}.json", json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
