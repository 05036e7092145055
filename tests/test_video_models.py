"""Video models: losses, causality, energies, normalization and rollouts."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import pytest
import torch

from ebt_policy.video.autoencoder import Autoencoder, Backbone, FrameFeatures, Latents
from ebt_policy.video.data import Clip
from ebt_policy.video.evaluate import draw_rollouts
from ebt_policy.video.metrics import EvalSet
from ebt_policy.video.model import EnergyVideoModel, VideoModel, build_video_model

F, S = 5, 4
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "s1": ({"name": "ebt", "inference": {}}, {"name": "s1", "init_std": 0.0}),
    "step_conditioned": (
        {"name": "ebt", "inference": {}},
        {"name": "s1", "init_std": 0.0, "step_conditioned": True},
    ),
    "s2": ({"name": "ebt", "inference": {}}, {"name": "s2", "noise": [0.0, 0.0], "replay": 4}),
    "refiner": ({"name": "refiner", "inference": {}}, {"name": "s1", "init_std": 0.0}),
    "transformer_pp": ({"name": "transformer_pp"}, None),
}


def build(kind: str, features: int = F) -> VideoModel:
    model, objective = KINDS[kind]
    torch.manual_seed(0)
    video_model: Any = build_video_model(
        {
            "task": {"context": S}, "features": features, "model": model, "objective": objective,
            "size": {"width": 16, "heads": 2, "layers": 2},
        }
    )  # fmt: skip
    return video_model


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def frames(rows: int = 3, length: int = S + 1) -> torch.Tensor:
    return torch.randn(rows, length, F, generator=torch.Generator().manual_seed(1)).cumsum(1)


def test_loss_is_finite_and_reaches_every_parameter(kind):
    model = build(kind)
    loss, _ = model.loss({"frames": frames()})
    loss.backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert loss.isfinite() and unused == []


def test_video_models_have_similar_parameter_counts():
    counts = {kind: build(kind).parameter_count for kind in ("s1", "refiner", "transformer_pp")}
    assert counts["s1"] == counts["refiner"]
    assert counts["s1"] - counts["transformer_pp"] == 1 + 2 * 16  # step size, `place`, norm


def test_predictions_do_not_depend_on_later_frames(kind):
    model = build(kind).eval()
    rows = frames()
    other = rows.clone()
    other[:, -2:] += 1.0
    generator = torch.Generator().manual_seed(0)
    start = model.predict(model.observe(rows[:, :-1]), generator)
    generator.manual_seed(0)
    after = model.predict(model.observe(other[:, :-1]), generator)
    torch.testing.assert_close(start.changes[:, :-1], after.changes[:, :-1])
    assert not torch.allclose(start.changes[:, -1], after.changes[:, -1])


def test_one_step_from_zero_equals_a_plain_transformer():
    """This holds for a step of size 1, by the energy's gradient (see `SequenceEnergyModel`)."""
    model = build("s1")
    assert isinstance(model, EnergyVideoModel)
    model.configure_inference(steps=1)
    observed = model.observe(frames()[:, :-1])
    empty = torch.zeros(3, S, 16)
    want = model.change_out(model.net(observed, empty))
    torch.testing.assert_close(model.predict(observed).changes, want)


def test_energies_equal_the_formula():
    model = build("s1")
    assert isinstance(model, EnergyVideoModel)
    observed = model.observe(frames()[:, :-1])
    prediction = model.predict(observed)
    small = F**-0.5
    e = small * prediction.changes @ model.change_out.weight
    want = -(e * model.net(observed, e)).sum(-1) + small * prediction.changes.square().sum(-1) / 2
    torch.testing.assert_close(prediction.signals["energy"], want)


def test_repeating_the_last_frame_has_an_error_of_one():
    """The error does not depend on the units of the features."""
    model = build("transformer_pp")
    some = [3.0 + 100 * x for x in frames(6, 20)]
    model.fit(some)
    rows = model.normalize({"frames": torch.stack(some)})["frames"]
    assert rows.flatten(0, 1).std(0) == pytest.approx(torch.ones(F).numpy(), rel=1e-4)
    assert model.changes(rows).square().mean().item() == pytest.approx(1.0, rel=1e-4)


def test_constant_feature_is_normalized_safely():
    model = build("transformer_pp")
    some = frames(6, 20)
    some[..., 0] = 7.0
    model.fit(list(some))
    assert model.normalize({"frames": some})["frames"].isfinite().all()


def test_rollout_continues_from_predicted_frames(kind):
    model = build(kind).eval()
    start = frames(2, S)
    generator = torch.Generator().manual_seed(0)
    ahead = model.rollout(start, 3, generator)
    assert ahead.shape == (2, 3, F)
    generator.manual_seed(0)
    first = model.rollout(start, 1, generator)
    torch.testing.assert_close(ahead[:, :1], first)
    second = model.rollout(torch.cat([start, first], 1), 1, generator)
    torch.testing.assert_close(ahead[:, 1:2], second)


def test_rollouts_are_rendered_for_decodable_features(tmp_path):
    device = torch.device("cpu")
    back, none = (
        Latents(Autoencoder([8, 8], 1, 0.0).net, device),
        Backbone(torch.nn.Flatten(), device),
    )
    clip = Clip(np.zeros((10, 4, 4, 3), np.uint8), "clip")
    features = back.encode(torch.from_numpy(clip.frames))
    models = {name: build("transformer_pp", 4) for name in ("one", "other")}

    def draw(*encoders: FrameFeatures) -> Any:
        windows: Any = None  # not needed for drawing
        evaluated = {
            name: (
                models[name],
                EvalSet([clip], [features], windows, encoder, {"context": S}, 5.0, ""),
            )
            for name, encoder in zip(models, encoders, strict=True)
        }
        return draw_rollouts(evaluated, tmp_path)

    assert draw(none, none) is None and not list(tmp_path.iterdir())
    partial, complete = draw(none, back), draw(back, back)
    assert len(partial.axes) < len(complete.axes)
    with av.open(str(tmp_path / "rollouts.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 10 - S  # frames after the context
    assert frames[0].shape[1] > 2.9 * frames[0].shape[0]  # ground truth and both models
