"""The vision encoder, and camera policies of every kind."""

from __future__ import annotations

import sys

import pytest
import torch
from camera_policies import KINDS, build, generators, observe, training_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebt_policy.errors import ConfigError
from ebt_policy.policies import load_policy
from ebt_policy.policies.augmentation import Augmentation, AugmentationConfig
from ebt_policy.policies.vision import VisionConfig, VisionEncoder, crop, spatial_softmax

pytestmark = pytest.mark.vision


# -- the encoder ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    position=st.tuples(
        st.floats(0, 1, exclude_max=True, width=32), st.floats(0, 1, exclude_max=True, width=32)
    ),
    data=st.data(),
)
def test_crop_is_the_same_for_all_images_of_a_row(h, w, position, data):
    window = [data.draw(st.integers(1, h)), data.draw(st.integers(1, w))]
    images = torch.arange(2 * 3 * h * w * 3).view(2, 3, h, w, 3)
    offsets = torch.tensor([position[::-1], position])
    cropped = crop(images, window, offsets)
    for row, (y, x) in enumerate(offsets.tolist()):
        top, left = int(y * (h - window[0] + 1)), int(x * (w - window[1] + 1))
        want = images[row, :, top : top + window[0], left : left + window[1]]
        assert torch.equal(cropped[row], want)
    centre = crop(images, window, None)
    top, left = (h - window[0]) // 2, (w - window[1]) // 2
    assert torch.equal(centre, images[:, :, top : top + window[0], left : left + window[1]])


def test_keypoints_follow_the_responses():
    responses = torch.full((2, 2, 5, 9), -50.0)
    responses[0, 0, 0, 0] = responses[0, 1, 4, 8] = 50.0  # a corner each
    responses[1, 0, 2, 4] = 50.0  # the middle
    responses[1, 1, 2, 0] = responses[1, 1, 2, 8] = 50.0  # equal at both edges
    points = spatial_softmax(responses)  # x of both, then y of both
    want = torch.tensor([[-1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(points, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pretrained", [False, True])
def test_images_are_encoded_independently(pretrained):
    """Batch statistics are not used: they would not fit averaged weights and batched rollouts."""
    pytest.importorskip("timm")
    torch.manual_seed(0)
    config = VisionConfig(backbone="test_resnet", pretrained=pretrained, keypoints=4)
    encoder = VisionEncoder({"left": [40, 48], "right": [32, 32]}, config).train()
    images = {
        "left": torch.randint(0, 256, (3, 2, 40, 48, 3), dtype=torch.uint8),
        "right": torch.randint(0, 256, (3, 2, 32, 32, 3), dtype=torch.uint8),
    }
    batched = encoder(images, None)
    assert batched.shape == (3, 2, encoder.num_features) and encoder.num_features == 2 * 4 * 2
    alone = encoder({name: image[1:2, 1:] for name, image in images.items()}, None)
    torch.testing.assert_close(alone[0, 0], batched[1, 1])
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not norms  # group normalisation, or frozen batch normalisation


def test_cameras_can_share_an_encoder():
    pytest.importorskip("timm")
    torch.manual_seed(0)
    config = VisionConfig(backbone="test_resnet", keypoints=4, shared=True)
    cameras = {"left": [32, 32], "right": [32, 32]}
    encoder = VisionEncoder(cameras, config)
    alone = VisionEncoder({"left": [32, 32]}, config)
    assert [p.shape for p in encoder.parameters()] == [p.shape for p in alone.parameters()]
    left, right = torch.randint(0, 256, (2, 3, 2, 32, 32, 3), dtype=torch.uint8)
    features = encoder({"left": left, "right": right}, None)
    swapped = encoder({"left": right, "right": left}, None)
    assert features.shape == (3, 2, encoder.num_features) and encoder.num_features == 2 * 4 * 2
    torch.testing.assert_close(features, swapped.roll(8, dims=-1))
    with pytest.raises(ConfigError, match=r"vision\.shared=true needs cameras of equal sizes"):
        VisionEncoder(cameras | {"right": [40, 32]}, config)


def test_invalid_vision_options_are_a_one_line_error(monkeypatch):
    pytest.importorskip("timm")
    for wrong, message in [
        ({"backbone": "resnet81"}, "resnet81 is not a model of timm .*did you mean"),
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


# -- augmentation --------------------------------------------------------------------------------

CHANGES = {"brightness": 0.3, "contrast": 0.2, "saturation": 0.2, "hue": 0.05, "blur": 0.5,
           "erase": 0.5}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_alike_in_all_images_of_a_row(name):
    pytest.importorskip("kornia")
    change = Augmentation(AugmentationConfig(**{name: CHANGES[name]}))
    one = torch.randint(0, 256, (16, 1, 24, 32, 3), dtype=torch.uint8)
    images = one.expand(-1, 2, -1, -1, -1).contiguous()
    torch.manual_seed(0)
    changed = change(images)
    assert changed.shape == images.shape and changed.dtype == torch.uint8
    assert torch.equal(changed[:, 0], changed[:, 1])
    amounts = (changed.float() - images.float()).abs().mean(dim=(1, 2, 3, 4))
    assert len(amounts.unique()) > 4 and amounts.mean() < 60  # rows change differently
    torch.manual_seed(0)
    assert torch.equal(change(images), changed)


def test_images_change_in_training_only():
    pytest.importorskip("kornia")
    policy = build("flow", "vision.brightness=0.5")
    batch = training_batch(policy)
    (camera,) = policy.shape.cameras or ()
    assert not torch.equal(policy.train().with_noise(batch)[camera], batch[camera])
    assert torch.equal(policy.eval().with_noise(batch)[camera], batch[camera])
    assert build("flow").vision.augment is None  # type: ignore[union-attr]


def test_invalid_changes(monkeypatch):
    for options, message in (
        ({"hue": 0.6}, r"vision.hue must be between 0 and 0.5, got 0.6"),
        ({"erase": -0.1}, r"vision.erase must be between 0 and 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            VisionConfig(backbone="test_resnet", **options)
    monkeypatch.setitem(sys.modules, "kornia", None)
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    with pytest.raises(ConfigError, match="changes of images need kornia"):
        AugmentationConfig(blur=0.1)


# -- policies ------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def test_every_policy_trains_its_encoder(kind):
    policy = build(kind)
    batch = training_batch(policy)
    loss, _ = policy.train().loss(batch)
    loss.backward()
    assert policy.vision is not None
    for name, parameter in policy.vision.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    torch.manual_seed(0)
    noisy_batch = policy.with_noise(batch)
    assert noisy_batch["noise"]["crop"].shape == (3, 1, 2)
    first, _ = policy(noisy_batch)
    again, _ = policy(noisy_batch)
    assert torch.equal(first, again)  # all randomness is in the noise
    noisy_batch["noise"]["crop"] = 1 - noisy_batch["noise"]["crop"]
    assert not torch.equal(policy(noisy_batch)[0], first)


def test_every_policy_depends_on_its_images(kind):
    policy = build(kind)
    obs = observe(2)
    chunk = policy.predict_chunk(obs, generator=generators(0, 1))
    assert chunk.actions.shape == (2, 16, 2) and chunk.actions.isfinite().all()
    dark = {**obs, "image": torch.zeros_like(obs["image"])}
    other = policy.predict_chunk(dark, generator=generators(0, 1))
    if chunk.energy is not None:  # an untrained policy may select the same sample
        assert not torch.allclose(other.energy, chunk.energy)
    else:
        assert not torch.allclose(other.actions, chunk.actions)


def test_invalid_observations_are_refused():
    policy, good = build(), observe(1)
    nan = {**good, "obs": torch.full((1, 2, 2), torch.nan)}
    for obs, message in [
        ({"obs": good["obs"]}, 'must have the camera "image"'),
        ({**good, "image": good["image"][:, :, 6:]}, r'"image" must have images \(1, 2, 96'),
        ({**good, "image": good["image"][:, :1]}, r"got \(1, 1, 96, 96, 3\) uint8"),
        ({**good, "image": good["image"].float()}, "float32"),
        (nan, "NaN or Inf"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            policy.predict_chunk(obs)


def test_images_are_encoded_once_per_chunk(monkeypatch):
    policy, calls = build(), []
    policy.configure_inference(steps=4, num_candidates=8)
    assert policy.vision is not None
    policy.vision.register_forward_hook(lambda *_: calls.append(1))
    policy.predict_chunk(observe(2))
    assert len(calls) == 1


def test_image_policy_is_stored_and_loaded(tmp_path):
    policy = build("flow_matching")
    policy.save(tmp_path)
    again = load_policy(tmp_path)
    assert again.shape == policy.shape and again.parameter_count == policy.parameter_count
    want = policy.predict_chunk(observe(1), generator=generators(3)).actions
    assert torch.equal(again.predict_chunk(observe(1), generator=generators(3)).actions, want)


def test_replayed_rows_include_their_images():
    policy = build("s2", "objective.replay=6")
    batch = training_batch(policy, 4)
    noisy_batch = policy.with_noise(policy.before_step(batch))
    _, metrics = policy(noisy_batch)
    rows = {key: noisy_batch[key] for key in policy.keys}
    policy.after_step({**rows, "candidate": metrics["candidate"]})
    second = policy.with_noise(policy.before_step(training_batch(policy, 4)))
    assert len(second["image"]) == len(second["obs"]) == 6 and second["image"].dtype == torch.uint8
    for row in (4, 5):
        same = [i for i in range(4) if torch.equal(batch["obs"][i], second["obs"][row])]
        assert torch.equal(batch["image"][same[0]], second["image"][row])


@pytest.mark.slow
def test_compiled_image_policy_equals_eager(compiler):
    losses_, gradients = [], []
    for compiled in (False, True):
        policy = build()
        noisy_batch = {**training_batch(policy), "noise": {}}
        torch.manual_seed(0)
        noisy_batch = policy.with_noise(noisy_batch)
        if compiled:
            policy.compile()
        loss, _ = policy.train()(noisy_batch)
        loss.backward()
        losses_.append(loss.detach())
        gradients.append([p.grad for p in policy.parameters() if p.grad is not None])
    torch.testing.assert_close(*losses_, rtol=1e-4, atol=1e-5)
    for gradient, compiled_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, compiled_gradient, rtol=1e-2, atol=1e-4)
    policy = build()
    expected = policy.predict_chunk(observe(1), generator=generators(0)).actions
    policy.compile_prediction()
    actual = policy.predict_chunk(observe(1), generator=generators(0)).actions
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=0.05)
