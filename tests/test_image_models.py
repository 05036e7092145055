"""Image models: noise, denoising, features, scores and options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from ebt_policy.errors import ConfigError
from ebt_policy.image import metrics as image_metrics
from ebt_policy.image.model import EnergyImageModel, ImageModel, build_image_model
from ebt_policy.image.patch_transformer import LEVELS
from ebt_policy.image.tiling import denoise_tiled
from ebt_policy.models.ddim import ExactDDIMScheduler

SHAPE = {"side": 8, "channels": 3, "patch": 4, "max_noise_level": 100, "classes": 0}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "s1": ({"name": "ebt", "inference": {}}, {"name": "s1"}),
    "corrupted": ({"name": "ebt", "inference": {}}, {"name": "s1", "corrupted_init_fraction": 0.5}),
    "conditioned": ({"name": "ebt", "inference": {}}, {"name": "s1", "step_conditioned": True}),
    "s2": ({"name": "ebt", "inference": {}}, {"name": "s2", "replay": 4, "noise": [0.0, 0.0]}),
    "refiner": ({"name": "refiner", "inference": {}}, {"name": "s1"}),
    "dit": ({"name": "dit", "inference": {"steps": 3}}, None),
}


def build(kind: str, **shape: int) -> ImageModel:
    model, objective = KINDS[kind]
    torch.manual_seed(0)
    return build_image_model(
        {
            "shape": {**SHAPE, **shape},
            "size": {"width": 16, "heads": 2, "layers": 1},
            "model": model,
            "objective": objective,
        }
    )


def batch(model: ImageModel, rows: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    side, channels = model.shape.side, model.shape.channels
    pixels = torch.randint(0, 256, (rows, side, side, channels), generator=generator)
    labels = torch.arange(rows) % max(model.shape.classes, 1)
    return model.normalize({"image": pixels.to(torch.uint8), "label": labels})


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def test_pixels_are_normalized_to_minus_one_to_one():
    model = build("s1")
    pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat(96).view(1, 8, 8, 3)
    image = model.normalize({"image": pixels, "label": torch.zeros(1)})["image"]
    assert image.shape == (1, 3, 8, 8) and image.unique().tolist() == [-1.0, 1.0]
    assert torch.equal(image[0, :, 2, 5], pixels[0, 2, 5].float() / 127.5 - 1)


def test_patches_are_image_squares_and_invertible():
    model = build("s1", side=12)
    image = torch.arange(3 * 144.0).view(1, 1, 3, 12, 12)
    patches = model.net.patches(image)
    assert patches.shape == (1, 1, 9, 48)
    assert torch.equal(patches[0, 0, 5].view(3, 4, 4), image[0, 0, :, 4:8, 8:12])
    assert torch.equal(model.net._images(patches), image)


def test_noise_follows_the_diffusion_schedule():
    """Level 0 has no noise, level 100 a deviation of 43 of 255, and the last level only noise."""
    model = build("s1")
    clean = torch.full((2, 3, 64, 64), 0.5)
    assert torch.equal(model.add_noise(clean, 0, torch.Generator()), clean)
    noisy = model.add_noise(clean, 100, torch.Generator().manual_seed(0))
    abar = np.prod(1 - np.linspace(1e-4, 0.02, LEVELS)[:100])
    assert noisy.mean().item() == pytest.approx(0.5 * abar**0.5, abs=0.01)
    assert noisy.std().item() == pytest.approx((1 - abar) ** 0.5, abs=0.01)
    assert 127.5 * ((1 - abar) / abar) ** 0.5 == pytest.approx(43, abs=0.5)
    pure_noise = model.add_noise(clean, LEVELS, torch.Generator().manual_seed(0))
    assert pure_noise.std().item() == pytest.approx(1, abs=0.01)


def test_training_candidates_start_at_the_inference_noise_level():
    """Candidates start at `max_noise_level`; corrupted candidates also start at lower levels."""
    clean = torch.full((200, 3, 8, 8), 0.5)
    rows = {"image": clean, "label": torch.zeros(200, dtype=torch.long)}
    model = build("s1")
    abar = model.abar[100]
    start = model.sample_noise(rows)["init"][:, 0] - abar.sqrt() * 0.5
    assert start.std().item() == pytest.approx((1 - abar).sqrt().item(), rel=0.02)
    spread = build("corrupted").sample_noise(rows)["init"][:, 0].flatten(1).std(1)
    lower = (spread < 0.75 * (1 - abar).sqrt()).float().mean()
    assert 0.15 < lower < 0.4  # about half of the corrupted half


def test_loss_is_finite_and_reaches_every_parameter(kind):
    model = build(kind)
    loss, _ = model.loss(batch(model))
    loss.backward()
    assert loss.isfinite()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_energy_model_and_refiner_have_equal_parameters():
    assert build("s1").parameter_count == build("refiner").parameter_count


def test_denoising_is_independent_of_the_batch(kind):
    """The result does not depend on the other images of the batch."""
    model = build(kind).eval()
    noisy = model.add_noise(batch(model)["image"], 100, torch.Generator().manual_seed(0))
    result, alone = model.denoise(noisy, 100), model.denoise(noisy[:1], 100)
    torch.testing.assert_close(result.images[:1], alone.images)
    assert result.images.shape == noisy.shape and result.images.abs().max() <= 1
    assert torch.equal(result.path[0], noisy)
    assert len(result.path) == result.steps_used[0] + 1
    assert (result.energies is None) == (kind in ("refiner", "dit"))


def test_patch_energies_sum_to_the_energy():
    model: Any = build("s1")
    images = batch(model)["image"].unsqueeze(1)
    context = model.encode(None, len(images))
    shares = model.net.energy_map(context, images)
    assert shares.shape == (4, 1, 2, 2)
    torch.testing.assert_close(shares.sum((2, 3)), model.net(context, images))


class Oracle(torch.nn.Module):
    """A perfect noise predictor, computed from the clean image."""

    def __init__(self, clean: Tensor, abar: Tensor) -> None:
        super().__init__()
        self.clean, self.abar, self.levels = clean, abar, []

    def encode(self, labels: Tensor) -> None:
        return None

    def forward(self, context: None, noisy: Tensor, levels: Tensor) -> Tensor:
        level = round(float((1 - levels[0, 0]) * LEVELS))
        self.levels.append(level)
        abar = self.abar[level]
        return (noisy - abar.sqrt() * self.clean.unsqueeze(1)) / (1 - abar).sqrt()


def with_oracle(model: Any, clean: Tensor) -> Oracle:
    """Replace the network of a model by an oracle."""
    model.net = oracle = Oracle(clean, model.abar)
    return oracle


@pytest.mark.parametrize(
    ("noise", "options", "levels"),
    [
        (100, {"steps": 4}, [100, 75, 50, 25]),
        (100, {"steps": 1}, [100]),
        (100, {"steps": 6}, [100, 83, 67, 50, 33, 17]),  # the steps do not divide the levels
        (50, {"steps": 2}, [50, 25]),
        (50, {"steps": 2, "start_at_noise_level": False}, [100, 50]),
        (200, {"steps": 2}, [100, 50]),
        (2, {"steps": 5}, [2, 2, 1, 2, 1]),  # five passes over two levels
    ],
)
@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
def test_diffusion_starts_at_the_given_noise_level(noise, options, levels, scheduler):
    model = build("dit")
    clean = batch(model)["image"] * 0.9
    noisy = model.add_noise(clean, noise, torch.Generator().manual_seed(0))
    oracle = with_oracle(model, clean)
    model.configure_inference(scheduler=scheduler, **options)
    result = model.denoise(noisy, noise, generator=torch.Generator().manual_seed(0))
    assert sorted(oracle.levels) == sorted(levels) and oracle.levels[0] == levels[0]
    if noise <= 100:
        torch.testing.assert_close(result.images, clean, atol=2e-3, rtol=0)


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
def test_number_of_network_passes_equals_steps(scheduler):
    """The trailing spacing of diffusers has one level too many for some numbers of steps."""
    model = build("dit")
    clean = batch(model)["image"] * 0.9
    noisy = model.add_noise(clean, 100, torch.Generator().manual_seed(0))
    for steps in (*range(1, 101, 7), 28, 29, 30, 31, 58, 62, 97):
        oracle = with_oracle(model, clean)
        model.configure_inference(scheduler=scheduler, steps=steps)
        result = model.denoise(noisy, 100, generator=torch.Generator().manual_seed(0))
        assert len(oracle.levels) == steps == len(result.path) - 1
        torch.testing.assert_close(result.images, clean, atol=2e-3, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_ddim_equals_diffusers_when_steps_divide_the_levels(prediction, steps):
    options = {
        "num_train_timesteps": 40,
        "prediction_type": prediction,
        "timestep_spacing": "trailing",
    }
    exact, reference = ExactDDIMScheduler(**options), DDIMScheduler(**options)
    x = y = torch.randn(2, 3)
    for scheduler in (exact, reference):
        scheduler.set_timesteps(steps)
    for t in exact.timesteps:
        predicted = torch.randn(2, 3)
        x, y = exact.step(predicted, t, x).prev_sample, reference.step(predicted, t, y).prev_sample
        torch.testing.assert_close(x, y)


def test_early_stopped_tiles_are_padded_to_equal_length():
    """Every tile stops at once, but paths and energies have all steps."""
    model = build("s1")
    model.configure_inference(steps=5)
    images = [torch.zeros(3, 8, 8), torch.rand(3, 20, 8) * 2 - 1]
    free = [result.energies for result in denoise_tiled(model, images, 100, [0, 0])]
    model.configure_inference(stop_grad_norm=1e9)
    for result, energies in zip(denoise_tiled(model, images, 100, [0, 0]), free, strict=True):
        assert len(result.path) == len(result.energies) == len(energies) == 6
        assert result.energies is not None and (result.energies == result.energies[0]).all()


def test_several_candidates_need_random_starts():
    with pytest.raises(ConfigError, match="start at the same point"):
        build("s1").configure_inference(num_candidates=2)
    model = build("s1", max_noise_level=LEVELS)
    model.configure_inference(num_candidates=3)
    result = model.denoise(torch.randn(2, 3, 8, 8), LEVELS, generator=torch.Generator())
    torch.testing.assert_close(result.path[-1].clamp(-1, 1), result.images)


def test_denoising_depends_on_the_class():
    model = build("s1", classes=3)
    rows = batch(model)
    loss, _ = model.loss(rows)
    assert loss.isfinite()
    first = model.denoise(rows["image"], 100, torch.zeros(4, dtype=torch.long)).images
    assert not torch.allclose(first, model.denoise(rows["image"], 100, torch.ones(4).long()).images)
    with pytest.raises(ConfigError, match="trained with classes"):
        model.denoise(rows["image"], 100)
    model.config["task"] = {"images": "leaves", "path": None, "skip_unreadable": False}
    with pytest.raises(ConfigError, match=r"conditioned on 3 classes, and leaves has none"):
        image_metrics.load_eval_set(model, None, torch.device("cpu"))


def test_features_are_independent_of_the_batch(kind):
    model = build(kind).eval()
    images = batch(model)["image"]
    features = model.features(images)
    layers, width = 1, 16
    assert features.shape == (4, layers * width) and features.std(0).min() > 0
    torch.testing.assert_close(model.features(images[1:2]), features[1:2], atol=1e-5, rtol=1e-4)
    noisy = [
        model.features(images, 50, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(noisy[0], noisy[1]) and not torch.allclose(noisy[0], noisy[2])


def test_ood_scores_equal_their_formulas(kind):
    model = build(kind).eval()
    images = batch(model)["image"]
    generator = torch.Generator().manual_seed(0)
    scores = model.ood_scores(images, generator)
    generator.manual_seed(0)
    restored = model.denoise(model.add_noise(images, 100, generator), 100, generator=generator)
    error = (restored.images - images).square().flatten(1).mean(1)
    torch.testing.assert_close(scores["restoring"], error)
    if not isinstance(model, EnergyImageModel):
        assert set(scores) == {"restoring"}
        return
    level = model.network_level(torch.zeros(4))
    inputs = images.unsqueeze(1).requires_grad_()
    value = model.net(model.encode(None, 4), inputs, level)
    if not model.has_energy:
        torch.testing.assert_close(scores["gradient"], value.square().flatten(1).mean(1))
        return
    torch.testing.assert_close(scores["energy"], value[:, 0])
    (slope,) = torch.autograd.grad(value.sum(), inputs)
    torch.testing.assert_close(scores["gradient"], slope.square().flatten(1).mean(1))


def test_invalid_options_are_refused():
    for shape, message in (
        ({"patch": 3}, r"task\.patch=3 must divide task\.side=8"),
        ({"max_noise_level": 0}, r"task\.max_noise_level must be 1 to 1000"),
    ):
        with pytest.raises(ConfigError, match=message):
            build("s1", **shape)
    sections = {"shape": SHAPE, "size": {"width": 16, "heads": 2, "layers": 1}}
    with pytest.raises(ConfigError, match=r"task\.max_noise_level=1000, or use"):
        build_image_model({**sections, "model": KINDS["s1"][0], "objective": {"name": "flow"}})
    with pytest.raises(ConfigError, match="no energy to select or stop by"):
        build("refiner").configure_inference(num_candidates=2)
    with pytest.raises(ConfigError, match=r"inference\.scheduler must be ddpm or ddim"):
        build("dit").configure_inference(scheduler="euler")
