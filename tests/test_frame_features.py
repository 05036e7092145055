"""Frame features of model=autoencoder, of an AutoencoderKL of diffusers, and of timm."""

from __future__ import annotations

import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from ebt_policy.errors import ConfigError
from ebt_policy.video.autoencoder import Autoencoder, Latents, frame_features


def test_invalid_autoencoder_options_are_refused():
    with pytest.raises(ConfigError, match=r"model\.channels must be multiples of 8"):
        Autoencoder([12], 4, 0.0)
    model = Autoencoder([8, 8, 8], 2, 0.0)
    with pytest.raises(ConfigError, match=r"task\.height=10 .* multiples of 4"):
        model.sample_noise({"image": torch.zeros(1, 3, 10, 16)})


def test_features_decode_to_frames():
    encoder = Latents(Autoencoder([8, 8], 3, 0.0).net, torch.device("cpu"))
    pixels = torch.randint(0, 256, (5, 8, 12, 3), dtype=torch.uint8)
    features = encoder.encode(pixels)
    assert features.shape == (5, 3 * 4 * 6)
    decoded = encoder.decode(features, 8, 12)
    assert decoded.shape == pixels.shape and decoded.dtype == torch.uint8


def test_unsupported_frame_sizes_are_refused_at_once():
    encoder = Latents(Autoencoder([8, 8, 8], 3, 0.0).net, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"task\.width=18 must be multiples of 4"):
        encoder.encode(torch.zeros(2, 8, 18, 3, dtype=torch.uint8))


def test_diffusers_autoencoder_is_supported(tmp_path):
    net = Autoencoder([8, 8], 3, 0.0).net
    net.save_pretrained(tmp_path / "vae")
    encoder = frame_features(str(tmp_path / "vae"), torch.device("cpu"))
    pixels = torch.randint(0, 256, (2, 8, 12, 3), dtype=torch.uint8)
    torch.testing.assert_close(
        encoder.encode(pixels), Latents(net, torch.device("cpu")).encode(pixels)
    )


def test_unavailable_features_are_a_one_line_error(tmp_path):
    with pytest.raises(ConfigError, match="is neither a run of model=autoencoder nor an Auto"):
        frame_features(str(tmp_path / "none"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda name, value: {}, "it lacks 1 weights, decoder.conv_in.bias among them"),
        (lambda name, value: {name: value * torch.nan}, "its weights have NaN or infinity"),
        (lambda name, value: {name: torch.zeros(3, 3)}, "expected shape"),
    ],
)
def test_incomplete_weights_are_refused(tmp_path, change, why):
    Autoencoder([8, 8], 3, 0.0).net.save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = "decoder.conv_in.bias"
    save_file(weights | change(name, weights.pop(name)), file)
    with pytest.raises(ConfigError, match=rf"task\.features=.*vae .*{why}"):
        frame_features(str(tmp_path / "vae"), torch.device("cpu"))


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, b"{"])
@pytest.mark.parametrize("file", ["diffusion_pytorch_model.safetensors", "config.json"])
def test_damaged_weight_files_are_a_one_line_error(tmp_path, file, content):
    Autoencoder([8, 8], 3, 0.0).net.save_pretrained(tmp_path / "vae")
    (tmp_path / "vae" / file).write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"task\.features=.*vae is neither .* nor an AutoencoderKL"
    ) as caught:
        frame_features(str(tmp_path / "vae"), torch.device("cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.vision
@pytest.mark.parametrize("error", [AttributeError, TypeError, struct.error, AssertionError])
def test_timm_errors_are_one_line(monkeypatch, error):
    timm = pytest.importorskip("timm")

    def fail(*_, **__):
        raise error("oops")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ConfigError, match=r"timm's model resnet18 cannot be loaded \(oops\)"):
        frame_features("timm:resnet18", torch.device("cpu"))


@pytest.mark.vision
def test_timm_backbone_encodes_frames(monkeypatch):
    timm = pytest.importorskip("timm")

    make = timm.create_model
    monkeypatch.setattr(
        timm, "create_model",
        lambda name, pretrained, **options: make(name, pretrained=False, **options),
    )  # fmt: skip
    encoder = frame_features("timm:vit_tiny_patch16_224", torch.device("cpu"))
    features = encoder.encode(torch.zeros(2, 24, 32, 3, dtype=torch.uint8))
    assert features.shape == (2, 192)
    with pytest.raises(ConfigError, match="resnet_of_mine is not a model of timm"):
        frame_features("timm:resnet_of_mine", torch.device("cpu"))


def test_autoencoder_loss_equals_its_formula():
    model = Autoencoder([8, 8], 3, 0.5)
    batch = model.normalize({"image": torch.randint(0, 256, (4, 8, 12, 3), dtype=torch.uint8)})
    batch["noise"] = model.sample_noise(batch)
    loss, metrics = model(batch)
    likely = model.net.encode(batch["image"]).latent_dist
    reconstruction = model.net.decode(likely.mean + likely.std * batch["noise"]["normal"]).sample
    # The error is squared because an absolute error neglects small objects.
    squared = (reconstruction - batch["image"]).square().mean()
    divergence = likely.kl().mean() / (3 * 4 * 6)
    torch.testing.assert_close(metrics["error"], squared)
    torch.testing.assert_close(loss, squared + 0.5 * divergence)
