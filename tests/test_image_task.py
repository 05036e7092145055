"""Training, evaluation and comparison of image models, also from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import compose_config
from PIL import Image

from ebt_policy import eval as eval_entry
from ebt_policy import train as train_entry
from ebt_policy.errors import ConfigError
from ebt_policy.image import metrics as image_metrics
from ebt_policy.image.evaluate import DenoisingConfig, evaluate_images
from ebt_policy.image.tiling import denoise_tiled
from ebt_policy.train import train


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Write a folder of twelve images of 20 x 24 pixels."""
    path = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(12):
        rough = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(rough).resize((24, 20), Image.Resampling.BICUBIC).save(path / f"{i}.png")
    return path


TINY = (
    "size.width=16", "size.heads=2", "size.layers=1", "task.side=8", "device=cpu",
    "train.steps=6", "train.minutes=null", "train.batch_size=4", "train.warmup_steps=2",
    "train.compile=false", "train.eval_every=3", "train.log_every=1",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("objective=s2",),
        ("model=dit", "model.inference.steps=2"),
        ("objective=equilibrium", "task.max_noise_level=1000"),
        ("task.channels=1",),
    ],
)
def test_training_writes_a_report_and_pictures(overrides, photos, tmp_path):
    run = tmp_path / "run"
    config = compose_config(
        *TINY, f"task.path={photos}", f"run_dir={run}", *overrides, "task=image"
    )
    train(config)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    generates = "task.max_noise_level=1000" in overrides
    assert any("held_out_psnr" in row for row in rows) != generates
    (entry,) = json.loads((run / "evaluation/summary.json").read_text())["entries"]
    assert (run / "evaluation/report.html").stat().st_size > 10_000
    picture = run / "evaluation" / ("run.png" if generates else "grid.png")
    with Image.open(picture) as image:
        assert image.size[0] > 300
    if generates:
        with pytest.raises(ConfigError, match="are for models that denoise"):
            evaluate_images(
                [str(run)], DenoisingConfig("leaves"), output=tmp_path / "out",
                device=torch.device("cpu"), command="",
            )  # fmt: skip
        assert not (tmp_path / "out").exists()
    else:
        assert entry["noise"] == 100 and entry["noise_double"] == 200
        assert entry["psnr"]["mean"] > 0 and entry["count"] == 1


@pytest.mark.slow
def test_training_improves_psnr(photos, tmp_path):
    """A few seconds of training raise the PSNR of noisy images by more than 2 dB."""
    run = tmp_path / "run"
    config = compose_config(
        *TINY, "train.steps=150", "train.batch_size=16", "train.lr=3e-3", "train.eval_every=0",
        f"task.path={photos}", f"run_dir={run}", "task=image",
    )  # fmt: skip
    train(config)
    (entry,) = json.loads((run / "evaluation/summary.json").read_text())["entries"]
    assert entry["psnr"]["mean"] > entry["noisy_psnr"] + 2


@pytest.mark.slow
def test_command_line_trains_and_compares(photos, tmp_path, call_entry, monkeypatch):
    runs = [tmp_path / "ebt", tmp_path / "refiner"]
    for run in runs:
        code, error = call_entry(
            train_entry.main, "task=image", f"model={run.name}", *TINY, "evaluation.final=false",
            f"task.path={photos}", f"run_dir={run}",
        )  # fmt: skip
        assert code == 0, error
    output = tmp_path / "out"
    comparing = (
        f"checkpoint={runs[0]}", f"checkpoint={runs[1]}", f"images={photos}", f"output={output}",
        "device=cpu",
    )  # fmt: skip
    code, error = call_entry(eval_entry.main, *comparing)
    assert code == 0, error
    result = json.loads((output / "summary.json").read_text())
    # After an interruption in the middle of the second line, the evaluation resumes from there.
    log = output / "restored.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0] + lines[1][:50])
    again = []
    monkeypatch.setattr(
        image_metrics, "denoise_tiled", lambda *a, **k: again.append(a) or denoise_tiled(*a, **k)
    )
    code, error = call_entry(eval_entry.main, *comparing)
    assert code == 0, error
    second = json.loads((output / "summary.json").read_text())
    for summary in (result, second):
        for entry in summary["entries"]:
            del entry["date"]
    assert second == result
    assert log.read_text().splitlines(keepends=True) == lines
    assert len(again) == len(lines) - 1
    code, error = call_entry(eval_entry.main, *comparing, f"checkpoint={runs[0]}@steps=1")
    assert code == 0 and len(log.read_text().splitlines()) == len(lines) + 2, error
    for wrong, message in (
        (["noise=abc"], "noise must be an integer or null, got 'abc'"),
        (["noise=0"], "noise must be 1 to 1000, got 0"),
        (["images=no_photos"], "images=no_photos is neither a path nor one of bsds500"),
        (["perturb=all"], "perturb= is for a policy"),
        ([f"checkpoint={tmp_path}/*bt", f"checkpoint={runs[0]}"], "ebt is listed twice"),
    ):
        code, error = call_entry(eval_entry.main, *comparing[:1], *wrong, "device=cpu")
        assert code == 2 and message in error, error
    assert [entry["count"] for entry in result["entries"]] == [12, 12]
    assert len(result["paired"]) == 4 and len(result["entries"][0]["thinking"]["longer"]) == 9
    code, error = call_entry(
        train_entry.main, "task=image", *TINY, "task.classes=true", f"task.path={photos}",
        f"run_dir={tmp_path / 'other'}",
    )  # fmt: skip
    assert code == 2 and "has no classes" in error and not (tmp_path / "other/log.jsonl").exists()
