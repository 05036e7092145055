"""Training of the golden cases, and the predictions that are recorded for each kind of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import compose_config
from torch import Tensor
from training_runs import logged

from ebt_policy import train as training
from ebt_policy.image.model import ImageModel
from ebt_policy.language.masked_lm import MaskedModel
from ebt_policy.language.model import TextModel
from ebt_policy.policies import ChunkConstraints, load_policy
from ebt_policy.video.autoencoder import Autoencoder, frame_features
from ebt_policy.video.model import VideoModel

Predictions = dict[str, Any]  # name -> tensor or text


def train(arguments: tuple[str, ...], run: str) -> Path:
    """Train as `python -m ebt_policy.train` does with these overrides; return the run folder."""
    return training.train(compose_config(*arguments, f"run_dir={run}"))


def losses(run: Path) -> list[float]:
    """Return the loss of each update, then the final held-out loss of the averaged weights."""
    lines = logged(run)
    return [line["loss"] for line in lines] + [lines[-1]["validation_loss"]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_observations(policy: Any) -> dict[str, Tensor]:
    """Return two observations in env units: pixels for Push-T, near zero for other tasks."""
    shape = policy.shape
    obs = normal(2, shape.n_obs_steps, shape.obs_dim, seed=1)
    observations = {"obs": 250 + 40 * obs if policy.config["task"]["name"] != "lift" else obs}
    for name, (height, width) in (shape.cameras or {}).items():
        images = 128 + 50 * normal(2, shape.n_obs_steps, height, width, 3, seed=2)
        observations[name] = images.clamp(0, 255).to(torch.uint8)
    return observations


def predict_chunks(
    policy: Any, folder: Path, terms: Sequence[str] = ("free", "bound", "warm")
) -> Predictions:
    """Predict chunks without constraints, with a prefix and limits, and with a warm start."""
    obs, shape, predictions = make_observations(policy), policy.shape, {}
    middle, spread = obs["obs"].mean(), obs["obs"].std()
    plan = middle + 0.5 * spread * normal(2, shape.horizon, shape.action_dim, seed=3)
    low, high = float(middle - spread), float(middle + spread)
    bound = {"prefix": plan[:, :3], "project": lambda x: x.clamp(low, high)}
    constraint_options: dict[str, Any] = {
        "free": {},
        "bound": bound,
        "warm": {"warm_start": plan, **bound},
    }
    for name in terms:
        constraints = ChunkConstraints(**constraint_options[name])
        chunk = policy.predict_chunk(obs, constraints=constraints, generator=seeded())
        predictions[f"{name} actions"], predictions[f"{name} energy"] = chunk.actions, chunk.energy
        predictions[f"{name} gradient"], predictions[f"{name} steps"] = (
            chunk.grad_norm,
            chunk.steps_used,
        )
    if hasattr(policy, "energies"):
        predictions["energies of plans"] = policy.energies(obs, plan.unsqueeze(1))
    return predictions


def predict_text(model: Any, folder: Path) -> Predictions:
    """Return logits and surprisal; for autoregressive models, energies and text too."""
    ids = np.random.default_rng(4).integers(0, model.vocabulary, (2, model.context + 1))
    tokens, predictions = torch.from_numpy(ids), {}
    with torch.no_grad():
        predictions["surprisal"] = model.surprisal(tokens, seeded())
        if isinstance(model, MaskedModel):
            predictions["logits"] = model.predict_masked(
                tokens, model.mask_positions(tokens, seeded()), seeded(1)
            )[:1]
            return predictions
        observed = model.observe(tokens[:, :-1])
        predictions["logits"] = model.predict(observed, seeded())[:1]
        if hasattr(model, "descend"):
            predictions["energies"] = model.descend(observed, seeded()).energies
        for temperature in (0.0, 1.0):
            chunks = model.generate("fox", 12, temperature=temperature, generator=seeded())
            predictions[f"text at {temperature}"] = "".join(chunks)
    return predictions


def predict_images(model: Any, folder: Path) -> Predictions:
    """Return denoised images, energies of the descent, features and out-of-distribution scores."""
    shape = model.shape
    clean = (0.5 * normal(2, shape.channels, shape.side, shape.side, seed=5)).clamp(-1, 1)
    labels = torch.tensor([1, 0]) if shape.classes else None
    noisy = model.add_noise(clean, shape.max_noise_level, seeded())
    restored = model.denoise(noisy, shape.max_noise_level, labels, seeded(1))
    predictions = {"images": restored.images, "energies": restored.energies}
    predictions["features"] = model.features(clean, 50, labels, seeded())
    if labels is None:
        predictions |= model.ood_scores(clean, seeded())
    return predictions


def predict_frames(model: Any, folder: Path) -> Predictions:
    """Return prediction errors, out-of-distribution signals and a rollout."""
    frames = normal(2, model.context + 1, model.features, seed=7).cumsum(1)
    error, signals = model.errors(frames, seeded())
    return {"error": error, **signals, "rollout": model.rollout(frames, 3, seeded(1))}


def predict_features(model: Any, folder: Path) -> Predictions:
    """Return features of frames, and frames decoded from them."""
    autoencoder: Any = frame_features(str(folder), torch.device("cpu"))
    frames = (128 + 50 * normal(2, 8, 8, 3, seed=6)).clamp(0, 255).to(torch.uint8)
    encoded = autoencoder.encode(frames)
    return {"features": encoded, "bytes": autoencoder.decode(encoded, 8, 8).float()}


# Kind -> loader, and function that returns the recorded predictions.
KINDS: dict[str, tuple[Callable[[Path], Any], Callable[[Any, Path], Predictions]]] = {
    "robot": (load_policy, predict_chunks),
    "text": (TextModel.from_checkpoint, predict_text),
    "image": (ImageModel.from_checkpoint, predict_images),
    "video": (VideoModel.from_checkpoint, predict_frames),
    "autoencoder": (Autoencoder.from_checkpoint, predict_features),
}


def predict(kind: str, folder: Path, inference: dict[str, dict[str, Any]]) -> Predictions:
    """Return the recorded predictions of the model in a folder, always for the same input."""
    load, predictions_of = KINDS[kind]
    model, predictions = load(folder), {}
    for setting, options in {"as trained": {}, **inference}.items():
        model.configure_inference(**options)
        for key, value in predictions_of(model, folder).items():
            predictions[f"{setting}, {key}"] = value
    return {key: value for key, value in predictions.items() if value is not None}


def predict_compiled(folder: Path) -> Predictions:
    """Return one constrained chunk of a policy whose prediction is compiled."""
    policy = load_policy(folder)
    policy.compile_prediction()
    predictions = predict_chunks(policy, folder, terms=("bound",))
    return {f"as trained, {key}": value for key, value in predictions.items() if value is not None}
