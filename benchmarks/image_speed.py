"""Speed of image models: ``python -m benchmarks.image_speed [size=2xs batch=32]``.

Options: size, batch, rounds. It times training updates, eager and compiled, and denoising of the
energy model, the refiner and DiT. They have equal size and read images of 32 x 32 pixels. All are
timed in turns within one run. Medians are stored in ``docs/results/image_speed_DEVICE.json``, and
printed with their ratios and images per second. Weights are untrained, because speed does not
depend on them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.command_line import command_line, parse_options
from benchmarks.device import DEVICE, device_name
from benchmarks.results import store_json
from benchmarks.speed import interleaved_timing, update_on
from benchmarks.tables.images import SPEED_MODELS, speed
from benchmarks.training import compose_config
from ebt_policy.image.model import ImageModel, build_image_model

SIDE, NOISE = 32, 100
MODELS = dict(zip(SPEED_MODELS, ("ebt", "refiner", "dit"), strict=True))
PASSES = (1, 2, 10)  # numbers of denoising passes


def make(model: str, size: str) -> ImageModel:
    """Return an untrained model with the default configuration."""
    config = compose_config("task=image", f"model={model}", f"size={size}")
    shape = {"side": SIDE, "channels": 3, "patch": 4, "max_noise_level": NOISE, "classes": 0}
    torch.manual_seed(0)
    return build_image_model({**config, "shape": shape}).to(DEVICE)


def update(model: ImageModel, rows: int) -> Callable[[], None]:
    """Return a function that makes one training update."""
    batch = {
        "image": torch.rand(rows, 3, SIDE, SIDE, device=DEVICE) * 2 - 1,
        "label": torch.zeros(rows, dtype=torch.long, device=DEVICE),
    }
    return update_on(model, batch)


def denoising(model: ImageModel, rows: int, passes: int) -> Callable[[], Any]:
    """Return a function that denoises a batch in a number of passes."""
    noisy = torch.rand(rows, 3, SIDE, SIDE, device=DEVICE) * 2 - 1

    def run() -> Any:
        model.configure_inference(steps=passes)
        return model.denoise(noisy, NOISE)

    return run


def main() -> None:
    options = parse_options(size="2xs", rounds=30, batch=32)
    jobs: dict[str, Callable[[], Any]] = {}
    for name, model in MODELS.items():
        jobs[f"{name}, update, eager"] = update(make(model, options.size), options.batch)
        compiled = make(model, options.size)
        compiled.compile()
        jobs[f"{name}, update, compiled"] = update(compiled, options.batch)
        frozen = make(model, options.size).eval().requires_grad_(False)
        for passes in PASSES:
            jobs[f"{name}, {passes} passes, eager"] = denoising(frozen, options.batch, passes)
    times = interleaved_timing(jobs, options.rounds)
    result = {
        "ms": {name: statistics.median(values) for name, values in times.items()},
        "size": options.size, "params": {n: make(m, options.size).parameter_count for n, m in
                                       MODELS.items()},
        "batch": options.batch, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "device": device_name(),
        "command": command_line("image_speed"),
    }  # fmt: skip
    store_json(f"image_speed_{DEVICE.type}", result)
    print(speed(result))


if __name__ == "__main__":
    main()
