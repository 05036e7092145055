"""Policies that see: the encoder, crops, frames of Push-T, and whole trainings from images."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from conftest import TINY, compose_config
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import assert_same_end

import ebt_policy.envs  # noqa: F401  registers the environments
from ebt_policy.data.normalizer import Normalizer
from ebt_policy.data.push_t import mirrored
from ebt_policy.data.render_cache import rendered_observations
from ebt_policy.data.windows import Windows, fit_normalizer
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.push_t_env import PushTEnv
from ebt_policy.envs.rollout import rollout
from ebt_policy.errors import ConfigError
from ebt_policy.io.download import cache_dir
from ebt_policy.policies import Policy, build_policy, load_policy
from ebt_policy.policies.energy_slice import slice_energy
from ebt_policy.policies.evaluate import batch_one_latency
from ebt_policy.policies.task_config import PolicyTaskConfig
from ebt_policy.policies.vision import VisionConfig, VisionEncoder, crop, spatial_softmax
from ebt_policy.train import main, train
from ebt_policy.training.trainer import Trainer

pytestmark = pytest.mark.vision
SIDE = 96
SHAPE = {
    "obs_dim": 2,
    "action_dim": 2,
    "horizon": 16,
    "n_obs_steps": 2,
    "n_action_steps": 8,
    "relative_to": [0, 1],
    "cameras": {"image": [SIDE, SIDE]},
}
NORMALIZER = Normalizer.fit(
    {"obs": torch.tensor([[0.0, 0.0], [512.0, 512.0]]), "action": torch.randn(99, 2) * 60},
    standardized=("action",),
)
KINDS = {
    "flow": ("model=ebt",),
    "s2": ("model=ebt", "objective=s2"),
    "diffusion": ("model=diffusion", "model.inference.steps=3"),
    "unet": ("model=diffusion", "model.inference.steps=3", "model.network=unet"),
    "flow_matching": ("model=flow_matching",),
    "bc": ("model=bc",),
    "ibc": ("model=ibc", "model.inference.samples=32"),
}
IMAGE = ("task=push_t_image", "vision.keypoints=4")


def build(kind: str = "flow", *overrides: str, shape: dict[str, Any] = SHAPE) -> Policy:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    config = compose_config(*TINY, *IMAGE, *KINDS[kind], *overrides)
    return build_policy({**config, "shape": shape}, NORMALIZER).eval()


def observe(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (rows, 2, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    return {"obs": torch.rand(rows, 2, 2, generator=generator) * 512, "image": image}


def training_batch(policy: Policy, rows: int = 3) -> dict[str, torch.Tensor]:
    action = 256 + 60 * torch.randn(rows, 16, 2, generator=torch.Generator().manual_seed(1))
    return policy.normalize({**observe(rows), "action": action})


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# -- the encoder ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    place=st.tuples(
        st.floats(0, 1, exclude_max=True, width=32), st.floats(0, 1, exclude_max=True, width=32)
    ),
    data=st.data(),
)
def test_a_crop_is_one_window_of_all_images_of_a_row(h, w, place, data):
    window = [data.draw(st.integers(1, h)), data.draw(st.integers(1, w))]
    images = torch.arange(2 * 3 * h * w * 3).view(2, 3, h, w, 3)
    other = torch.tensor([place[::-1], place])
    got = crop(images, window, other)
    for row, (y, x) in enumerate(other.tolist()):
        top, left = int(y * (h - window[0] + 1)), int(x * (w - window[1] + 1))
        want = images[row, :, top : top + window[0], left : left + window[1]]
        assert torch.equal(got[row], want)
    centre = crop(images, window, None)
    top, left = (h - window[0]) // 2, (w - window[1]) // 2
    assert torch.equal(centre, images[:, :, top : top + window[0], left : left + window[1]])


def test_keypoints_follow_what_moves_in_the_image():
    responses = torch.full((2, 2, 5, 9), -50.0)
    responses[0, 0, 0, 0] = responses[0, 1, 4, 8] = 50.0  # a corner each
    responses[1, 0, 2, 4] = 50.0  # the middle
    responses[1, 1, 2, 0] = responses[1, 1, 2, 8] = 50.0  # half here, half there
    points = spatial_softmax(responses)  # x of both, then y of both
    want = torch.tensor([[-1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(points, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pretrained", [False, True])
def test_one_image_does_not_touch_another(pretrained):
    """No batch statistics: averaged weights would not fit them, and rollouts are batched."""
    pytest.importorskip("timm")
    torch.manual_seed(0)
    how = VisionConfig(backbone="test_resnet", pretrained=pretrained, keypoints=4)
    encoder = VisionEncoder({"left": [40, 48], "right": [32, 32]}, how).train()
    images = {
        "left": torch.randint(0, 256, (3, 2, 40, 48, 3), dtype=torch.uint8),
        "right": torch.randint(0, 256, (3, 2, 32, 32, 3), dtype=torch.uint8),
    }
    together = encoder(images, None)
    assert together.shape == (3, 2, encoder.num_features) and encoder.num_features == 2 * 4 * 2
    alone = encoder({name: image[1:2, 1:] for name, image in images.items()}, None)
    torch.testing.assert_close(alone[0, 0], together[1, 1])
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not norms  # group normalisation, or batch normalisation that is frozen


def test_wrong_settings_are_one_sentence(monkeypatch):
    pytest.importorskip("timm")
    for wrong, message in [
        ({"backbone": "resnet81"}, "resnet81 is no model of timm .*did you mean"),
        ({"crop": 0.0}, "vision.crop"),
        ({"downsample": 0}, "vision.downsample"),
        ({"stage": 17}, "vision.stage=17"),
        ({"backbone": "vit_tiny_patch16_224"}, "cannot take images of 28 x 28 pixels"),
    ]:
        with pytest.raises(ConfigError, match=message) as caught:
            VisionEncoder({"image": [32, 32]}, VisionConfig(**{"backbone": "test_resnet", **wrong}))
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'ebt_policy\[vision\]'"):
        VisionConfig()


# -- policies ------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def test_every_policy_learns_from_what_it_sees(kind):
    policy = build(kind)
    batch = training_batch(policy)
    loss, _ = policy.train().loss(batch)
    loss.backward()
    assert policy.vision is not None
    for name, parameter in policy.vision.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    torch.manual_seed(0)
    drawn = policy.with_noise(batch)
    assert drawn["noise"]["crop"].shape == (3, 1, 2)
    first, _ = policy(drawn)
    again, _ = policy(drawn)
    assert torch.equal(first, again)  # all randomness is in the draws
    drawn["noise"]["crop"] = 1 - drawn["noise"]["crop"]
    assert not torch.equal(policy(drawn)[0], first)


def test_every_policy_acts_on_what_it_sees(kind):
    policy = build(kind)
    obs = observe(2)
    chunk = policy.predict_chunk(obs, generator=generators(0, 1))
    assert chunk.actions.shape == (2, 16, 2) and chunk.actions.isfinite().all()
    dark = {**obs, "image": torch.zeros_like(obs["image"])}
    other = policy.predict_chunk(dark, generator=generators(0, 1))
    if chunk.energy is not None:  # an untrained one may still choose the same sample
        assert not torch.allclose(other.energy, chunk.energy)
    else:
        assert not torch.allclose(other.actions, chunk.actions)


def test_bad_observations_are_refused():
    policy, good = build(), observe(1)
    nan = {**good, "obs": torch.full((1, 2, 2), torch.nan)}
    for obs, message in [
        ({"obs": good["obs"]}, 'must have the camera "image"'),
        ({**good, "image": good["image"][:, :, 6:]}, r'"image" must give \(1, 2, 96, 96, 3\)'),
        ({**good, "image": good["image"][:, :1]}, r"got \(1, 1, 96, 96, 3\) uint8"),
        ({**good, "image": good["image"].float()}, "float32"),
        (nan, "NaN or Inf"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            policy.predict_chunk(obs)


def test_images_are_encoded_once_a_chunk_and_not_at_all_while_descending(monkeypatch):
    policy, calls = build(), []
    policy.configure_inference(steps=4, num_candidates=8)
    assert policy.vision is not None
    policy.vision.register_forward_hook(lambda *_: calls.append(1))
    policy.predict_chunk(observe(2))
    assert len(calls) == 1


def test_a_policy_that_sees_is_stored_and_loaded(tmp_path):
    policy = build("flow_matching")
    policy.save(tmp_path)
    again = load_policy(tmp_path)
    assert again.shape == policy.shape and again.parameter_count == policy.parameter_count
    want = policy.predict_chunk(observe(1), generator=generators(3)).actions
    assert torch.equal(again.predict_chunk(observe(1), generator=generators(3)).actions, want)


def test_replayed_rows_bring_their_images():
    policy = build("s2", "objective.replay=6")
    batch = training_batch(policy, 4)
    drawn = policy.with_noise(policy.before_step(batch))
    _, metrics = policy(drawn)
    rows = {key: drawn[key] for key in policy.keys}
    policy.after_step({**rows, "candidate": metrics["candidate"]})
    second = policy.with_noise(policy.before_step(training_batch(policy, 4)))
    assert len(second["image"]) == len(second["obs"]) == 6 and second["image"].dtype == torch.uint8
    for row in (4, 5):
        same = [i for i in range(4) if torch.equal(batch["obs"][i], second["obs"][row])]
        assert torch.equal(batch["image"][same[0]], second["image"][row])


@pytest.mark.slow
def test_compiled_equals_eager(compiler):
    losses_, gradients = [], []
    for compiled in (False, True):
        policy = build()
        drawn = {**training_batch(policy), "noise": {}}
        torch.manual_seed(0)
        drawn = policy.with_noise(drawn)
        if compiled:
            policy.compile()
        loss, _ = policy.train()(drawn)
        loss.backward()
        losses_.append(loss.detach())
        gradients.append([p.grad for p in policy.parameters() if p.grad is not None])
    torch.testing.assert_close(*losses_, rtol=1e-4, atol=1e-5)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-4)
    policy = build()
    want = policy.predict_chunk(observe(1), generator=generators(0)).actions
    policy.compile_prediction()
    got = policy.predict_chunk(observe(1), generator=generators(0)).actions
    torch.testing.assert_close(got, want, rtol=1e-3, atol=0.05)


# -- windows -------------------------------------------------------------------------------------


def test_windows_gather_images_beside_observations():
    image = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 4, 5, 3).contiguous()
    arrays = {"obs": torch.arange(20.0).view(20, 1), "action": torch.zeros(20, 2), "eye": image}
    sizes = {"horizon": 4, "n_obs_steps": 2, "n_action_steps": 2}
    windows = Windows(arrays, [8, 20], cameras=["eye"], **sizes)
    batch = windows.gather(torch.arange(len(windows)))
    assert batch["eye"].dtype == torch.uint8 and batch["eye"].shape[1:] == (2, 4, 5, 3)
    assert torch.equal(batch["eye"][:, :, 0, 0, 0].float(), batch["obs"][:, :, 0])
    fit_normalizer(windows, None)  # of observations and actions alone
    for wrong, message in [
        ({**arrays, "eye": image.float()}, r"uint8, it has \(20, 4, 5, 3\) float32"),
        ({**arrays, "eye": image[..., :1]}, r"\(20, 4, 5, 1\)"),
        ({k: v for k, v in arrays.items() if k != "eye"}, 'need the key "eye"'),
    ]:
        with pytest.raises(ValueError, match=message):
            Windows(wrong, [8, 20], cameras=["eye"], **sizes)


PIXELS = EnvSpec("ebt_policy/PushTImage-v0", 300)


@pytest.fixture(autouse=True, scope="session")
def _frames_apart(tmp_path_factory):
    """Frames of tests do not belong into the user's cache."""
    before = os.environ.get("EBT_POLICY_CACHE")
    os.environ["EBT_POLICY_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["EBT_POLICY_CACHE"]
    else:
        os.environ["EBT_POLICY_CACHE"] = before


def test_damaged_kept_frames_are_drawn_again():
    states = np.tile(np.array([100.0, 100.0, 256.0, 256.0, 0.5]), (2, 1))
    first = rendered_observations(PIXELS, states)
    (kept,) = (p for p in (cache_dir() / "frames").glob("*.npz") if same(p, first))
    kept.write_bytes(kept.read_bytes()[:100])
    np.testing.assert_array_equal(rendered_observations(PIXELS, states)["image"], first["image"])
    assert same(kept, first)


def same(path, arrays) -> bool:
    with np.load(path) as kept:
        return np.array_equal(kept["image"], arrays["image"])


# -- Push-T from pixels --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized")  # px, as everyone has it
def test_follows_the_gymnasium_interface():
    env = gymnasium.make("ebt_policy/PushTImage-v0", render_mode="rgb_array")
    check_env(env.unwrapped)
    obs, info = env.reset(seed=100_000)
    np.testing.assert_allclose(obs["obs"], info["state"][:2])
    state, _ = gymnasium.make("ebt_policy/PushT-v0").reset(seed=100_000)
    np.testing.assert_allclose(obs["obs"], state[18:])


def test_demonstrations_look_as_the_environment_does():
    env, drawn = PushTEnv("rgb_array", SIDE, SIDE, pixels=True), []
    obs, info = env.reset(seed=3)
    states = [info["state"]]
    for _ in range(5):
        drawn.append(obs["image"])
        np.testing.assert_array_equal(env._render(), obs["image"])  # gym-pusht's resizing
        obs, _, _, _, info = env.step(np.array([200.0, 300.0]))
        states.append(info["state"])
    shown = rendered_observations(PIXELS, np.stack(states[:5]))
    np.testing.assert_array_equal(shown["image"], np.stack(drawn))
    np.testing.assert_allclose(shown["obs"], np.stack(states[:5])[:, :2], rtol=1e-6)
    again = rendered_observations(PIXELS, np.stack(states[:5]))  # from the cache
    np.testing.assert_array_equal(again["image"], shown["image"])
    assert len({frame.tobytes() for frame in drawn}) == 5


def test_a_mirrored_state_looks_like_the_mirrored_frame(demonstrations):
    episodes, _ = PolicyTaskConfig.from_config(
        {"task": {**compose_config()["task"], "path": str(demonstrations)}}
    ).demonstrations()
    frames = rendered_observations(PIXELS, episodes.arrays["state"])["image"].astype(float)
    images = rendered_observations(PIXELS, mirrored(episodes).arrays["state"])["image"].astype(
        float
    )
    flipped = frames.transpose(0, 2, 1, 3)[:, ::-1, ::-1]  # at the line x + y = 512
    assert np.abs(images - flipped).mean() < 0.5 < 2 < np.abs(images - frames).mean()


def test_the_shipped_demonstrations_need_no_frames():
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
def test_trains_plays_and_shows_its_landscape(trained, monkeypatch):
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
def test_resuming_equals_training_in_one_go(tiny, monkeypatch):
    pytest.importorskip("timm")
    how = ("objective=s2", "objective.replay=12", "train.steps=6", "train.checkpoint_every=3")
    settings = (*IMAGE, *how)
    straight = train(tiny("straight", *settings))
    step = Trainer.train_step

    def interrupt(self):
        if self.progress.step == 4:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tiny("broken", *settings))
    assert_same_end(straight, train(tiny("broken", *settings, "resume=true")))


def test_what_cannot_see_is_said_before_anything_is_loaded(
    tiny, tiny_arguments, call_entry, monkeypatch
):
    monkeypatch.setattr(PolicyTaskConfig, "demonstrations", lambda self: pytest.fail("loaded"))
    code, error = call_entry(main, *tiny_arguments("run", "vision=small"))
    assert code == 2 and "tasks with cameras" in error
    monkeypatch.setitem(sys.modules, "timm", None)
    code, error = call_entry(main, *tiny_arguments("run", *IMAGE))
    assert code == 2 and "pip install" in error and error.count("\n") == 1


def test_a_camera_that_the_demonstrations_lack_is_named(tiny):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match='need the key "wrist"'):
        train(tiny("run", *IMAGE, "task.cameras=[image,wrist]"))
