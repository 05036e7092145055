"""Push-T from images: windows, rendered frames, the environment and training."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from camera_policies import IMAGE, SIDE, observe
from conftest import compose_config
from gymnasium.utils.env_checker import check_env
from training_runs import assert_same_end

import ebt_policy.envs  # noqa: F401  registers the environments
from ebt_policy.data.push_t import mirrored
from ebt_policy.data.render_cache import rendered_observations
from ebt_policy.data.windows import Windows, fit_normalizer
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.push_t_env import PushTEnv
from ebt_policy.envs.rollout import rollout
from ebt_policy.io.download import cache_dir
from ebt_policy.policies import load_policy
from ebt_policy.policies.energy_slice import slice_energy
from ebt_policy.policies.evaluate import batch_one_latency
from ebt_policy.policies.task_config import PolicyTaskConfig
from ebt_policy.train import main, train
from ebt_policy.training.trainer import Trainer

pytestmark = pytest.mark.vision


# -- windows -------------------------------------------------------------------------------------


def test_windows_gather_images_beside_observations():
    image = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 4, 5, 3).contiguous()
    arrays = {"obs": torch.arange(20.0).view(20, 1), "action": torch.zeros(20, 2), "eye": image}
    sizes = {"horizon": 4, "n_obs_steps": 2, "n_action_steps": 2}
    windows = Windows(arrays, [8, 20], cameras=["eye"], **sizes)
    batch = windows.gather(torch.arange(len(windows)))
    assert batch["eye"].dtype == torch.uint8 and batch["eye"].shape[1:] == (2, 4, 5, 3)
    assert torch.equal(batch["eye"][:, :, 0, 0, 0].float(), batch["obs"][:, :, 0])
    fit_normalizer(windows, None)  # fits observations and actions only
    for wrong, message in [
        ({**arrays, "eye": image.float()}, r"uint8, got \(20, 4, 5, 3\) float32"),
        ({**arrays, "eye": image[..., :1]}, r"\(20, 4, 5, 1\)"),
        ({k: v for k, v in arrays.items() if k != "eye"}, 'need the key "eye"'),
    ]:
        with pytest.raises(ValueError, match=message):
            Windows(wrong, [8, 20], cameras=["eye"], **sizes)


PIXELS = EnvSpec("ebt_policy/PushTImage-v0", 300)


@pytest.fixture(autouse=True, scope="session")
def _separate_frame_cache(tmp_path_factory):
    """Keep rendered frames of the tests out of the user's cache."""
    before = os.environ.get("EBT_POLICY_CACHE")
    os.environ["EBT_POLICY_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["EBT_POLICY_CACHE"]
    else:
        os.environ["EBT_POLICY_CACHE"] = before


def test_damaged_cached_frames_are_rendered_again():
    states = np.tile(np.array([100.0, 100.0, 256.0, 256.0, 0.5]), (2, 1))
    first = rendered_observations(PIXELS, states)
    (cache_file,) = (p for p in (cache_dir() / "frames").glob("*.npz") if holds_images(p, first))
    cache_file.write_bytes(cache_file.read_bytes()[:100])
    np.testing.assert_array_equal(rendered_observations(PIXELS, states)["image"], first["image"])
    assert holds_images(cache_file, first)


def holds_images(path, arrays) -> bool:
    with np.load(path) as stored:
        return np.array_equal(stored["image"], arrays["image"])


# -- Push-T from pixels --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized")  # px, as in gym-pusht
def test_env_follows_the_gymnasium_interface():
    env = gymnasium.make("ebt_policy/PushTImage-v0", render_mode="rgb_array")
    check_env(env.unwrapped)
    obs, info = env.reset(seed=100_000)
    np.testing.assert_allclose(obs["obs"], info["state"][:2])
    state, _ = gymnasium.make("ebt_policy/PushT-v0").reset(seed=100_000)
    np.testing.assert_allclose(obs["obs"], state[18:])


def test_rendered_demonstrations_equal_environment_frames():
    env, frames = PushTEnv("rgb_array", SIDE, SIDE, pixels=True), []
    obs, info = env.reset(seed=3)
    states = [info["state"]]
    for _ in range(5):
        frames.append(obs["image"])
        np.testing.assert_array_equal(env._render(), obs["image"])  # resized as in gym-pusht
        obs, _, _, _, info = env.step(np.array([200.0, 300.0]))
        states.append(info["state"])
    rendered = rendered_observations(PIXELS, np.stack(states[:5]))
    np.testing.assert_array_equal(rendered["image"], np.stack(frames))
    np.testing.assert_allclose(rendered["obs"], np.stack(states[:5])[:, :2], rtol=1e-6)
    again = rendered_observations(PIXELS, np.stack(states[:5]))  # from the cache
    np.testing.assert_array_equal(again["image"], rendered["image"])
    assert len({frame.tobytes() for frame in frames}) == 5


def test_mirrored_state_renders_the_mirrored_frame(demonstrations):
    episodes, _ = PolicyTaskConfig.from_config(
        {"task": {**compose_config()["task"], "path": str(demonstrations)}}
    ).demonstrations()
    frames = rendered_observations(PIXELS, episodes.arrays["state"])["image"].astype(float)
    images = rendered_observations(PIXELS, mirrored(episodes).arrays["state"])["image"].astype(
        float
    )
    flipped = frames.transpose(0, 2, 1, 3)[:, ::-1, ::-1]  # mirrored at the line x + y = 512
    assert np.abs(images - flipped).mean() < 0.5 < 2 < np.abs(images - frames).mean()


def test_frames_of_shipped_demonstrations_are_rendered():
    task = PolicyTaskConfig.from_config(
        compose_config(*IMAGE, "task.demos=expert", "task.mirror=false")
    )
    episodes, _ = task.demonstrations()
    windows = task.windows(episodes.select([0]))
    assert windows.images["image"].shape == (len(windows.obs), SIDE, SIDE, 3)
    assert len(windows.images["image"].unique(dim=0)) > 10


@pytest.fixture
def trained(tiny) -> Path:
    pytest.importorskip("timm")
    return train(tiny("seeing", *IMAGE, "train.steps=2"))


@pytest.mark.slow
def test_image_policy_trains_rolls_out_and_plots_its_energy(trained, monkeypatch):
    policy: Any = load_policy(trained)
    assert policy.shape.cameras == {"image": [SIDE, SIDE]} and policy.config["vision"]
    spec = PolicyTaskConfig.from_config(policy.config).env_spec()
    results = rollout(policy, spec, [100_000, 100_001], workers=2)
    assert [len(r.chunks) for r in results] == [3, 3]
    monkeypatch.setattr("ebt_policy.policies.evaluate.LATENCY_CALLS", 2)
    assert batch_one_latency(policy, spec, 0)["p50"] > 0
    plane = slice_energy(policy, observe(1))
    assert np.isfinite(plane.energy).all() and len(plane.chunks) == policy.inference.steps + 1


@pytest.mark.slow
def test_resumed_image_training_equals_uninterrupted(tiny, monkeypatch):
    pytest.importorskip("timm")
    options = ("objective=s2", "objective.replay=12", "train.steps=6", "train.checkpoint_every=3")
    overrides = (*IMAGE, *options)
    uninterrupted = train(tiny("uninterrupted", *overrides))
    step = Trainer.train_step

    def interrupt(self):
        if self.progress.step == 4:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tiny("resumed", *overrides))
    assert_same_end(uninterrupted, train(tiny("resumed", *overrides, "resume=true")))


def test_vision_errors_are_raised_before_loading_data(
    tiny, tiny_arguments, call_entry, monkeypatch
):
    monkeypatch.setattr(PolicyTaskConfig, "demonstrations", lambda self: pytest.fail("loaded"))
    code, error = call_entry(main, *tiny_arguments("run", "vision=small"))
    assert code == 2 and "tasks with cameras" in error
    monkeypatch.setitem(sys.modules, "timm", None)
    code, error = call_entry(main, *tiny_arguments("run", *IMAGE))
    assert code == 2 and "pip install" in error and error.count("\n") == 1


def test_missing_camera_is_named(tiny):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match='need the key "wrist"'):
        train(tiny("run", *IMAGE, "task.cameras=[image,wrist]"))
