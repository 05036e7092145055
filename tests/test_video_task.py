"""Training, evaluation and comparison of video models, also from the command line."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from conftest import compose_config
from PIL import Image

from ebt_policy import eval as eval_entry
from ebt_policy import train as train_entry
from ebt_policy.train import train
from ebt_policy.video import evaluate as video_evaluate
from ebt_policy.video.metrics import prediction_errors

TINY = (
    "size.width=16", "size.heads=2", "size.layers=1", "device=cpu", "train.steps=6",
    "train.minutes=null", "train.batch_size=4", "train.warmup_steps=2", "train.compile=false",
    "train.checkpoint_every=3", "train.log_every=1", "task.height=16", "task.width=24",
    "task.context=4", "task.autoencoder_steps=4",
)  # fmt: skip


@pytest.fixture
def quick_autoencoder(monkeypatch):
    """Set defaults with which the autoencoder trains quickly."""
    from ebt_policy.video import task as video

    monkeypatch.setitem(video.AUTOENCODER_DEFAULTS, "batch_size", 4)
    monkeypatch.setitem(video.AUTOENCODER_DEFAULTS, "warmup_steps", 2)
    monkeypatch.setitem(video.AUTOENCODER_MODEL, "channels", [8, 8])


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [("objective=s2",), ("model=transformer_pp",), ()])
def test_training_writes_report_pictures_and_video(
    overrides, video_folder, tmp_path, monkeypatch, quick_autoencoder, caplog
):
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "runs" / "one"
    paths = (f"task.path={video_folder}", f"run_dir={run}")
    config = compose_config(*TINY, *paths, *overrides, "task=video")
    caplog.set_level("INFO")
    train(config)
    assert "training an autoencoder for 4 updates in" in caplog.text
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert any("validation_loss" in row for row in rows)
    (entry,) = json.loads((run / "evaluation/summary.json").read_text())["entries"]
    assert entry["error"]["mean"] > 0 and entry["clips"] == 4 and len(entry["by_place"]) == 4
    assert ("energy" in entry["hard"]) == (entry["model"] == "ebt")
    assert (run / "evaluation/report.html").stat().st_size > 10_000
    assert (run / "evaluation/rollouts.mp4").read_bytes()[4:8] == b"ftyp"
    with Image.open(run / "evaluation/strips.png") as image:
        assert image.size[0] > 300
    # The second run uses the existing autoencoder.
    config["run_dir"] = str(run.with_name("two"))
    caplog.clear()
    train(config)
    assert "training an autoencoder for 4 updates in" not in caplog.text


def test_too_short_clips_are_refused_before_training(video_folder, tmp_path, call_entry):
    code, error = call_entry(
        train_entry.main, "task=video", *TINY, "task.context=20", f"task.path={video_folder}",
        f"run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 2 and re.search(r"00\.mp4 has 16 frames, a window needs 21 \(", error), error
    assert not list(tmp_path.glob("autoencoder*"))


@pytest.mark.slow
def test_command_line_trains_and_compares(video_folder, tmp_path, monkeypatch, call_entry):
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    frames_run = tmp_path / "autoencoder"
    common = [*TINY, f"task.path={video_folder}", "evaluation.final=false"]
    code, error = call_entry(
        train_entry.main, "task=video", "model=autoencoder", "model.channels=[8,8]", *TINY,
        f"task.path={video_folder}", f"run_dir={frames_run}",
    )  # fmt: skip
    assert code == 0, error
    assert json.loads((frames_run / "evaluation/summary.json").read_text())["psnr"]["mean"] > 3
    runs = [tmp_path / "ebt", tmp_path / "refiner", tmp_path / "transformer_pp"]
    for run in runs:
        code, error = call_entry(
            train_entry.main, "task=video", f"model={run.name}", *common,
            f"task.features={frames_run}", f"run_dir={run}",
        )  # fmt: skip
        assert code == 0, error
    comparing = (
        *(f"checkpoint={run}" for run in runs), f"checkpoint={runs[0]}@steps=3",
        f"output={tmp_path / 'out'}", "device=cpu",
    )  # fmt: skip
    code, error = call_entry(eval_entry.main, *comparing)
    assert code == 0, error
    result = json.loads((tmp_path / "out/summary.json").read_text())
    assert len(result["entries"]) == 4 and len(result["paired"]) == 6
    # After an interruption in the middle of the third line, the evaluation resumes from there.
    log = tmp_path / "out/foreseen.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]) + lines[2][:50])
    again = []
    monkeypatch.setattr(
        video_evaluate, "prediction_errors", lambda *a: again.append(a) or prediction_errors(*a)
    )
    code, error = call_entry(eval_entry.main, *comparing)
    assert code == 0, error
    second = json.loads((tmp_path / "out/summary.json").read_text())
    for entry in [*result["entries"], *second["entries"]]:
        del entry["date"]
    assert second == result
    assert log.read_text().splitlines(keepends=True) == lines and len(again) == len(lines) - 2
    for wrong, message in (
        ([f"checkpoint={runs[0]}", f"checkpoint={runs[0]}/"], "ebt is listed twice"),
        (
            [f"checkpoint={tmp_path}/*"],
            "must match runs that differ in their seed alone|holds model=",
        ),
        ([f"checkpoint={frames_run}"], "holds model=autoencoder, not VideoModel"),
        (
            [f"checkpoint={runs[0]}@num_candidates=2"],
            "all candidates of this model start at",
        ),
        ([f"checkpoint={runs[0]}", "images=leaves"], "images= is for an image model"),
    ):
        code, error = call_entry(eval_entry.main, *wrong, "device=cpu")
        assert code == 2 and re.search(message, error), error
    # Other videos: all clips of a folder are used, and the result names the folder.
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(video_folder / "00.mp4", other / "mine.mp4")
    code, error = call_entry(
        eval_entry.main, *comparing[:-2], f"video_dataset={other}", f"output={tmp_path / 'mine'}",
        "device=cpu",
    )  # fmt: skip
    assert code == 0, error
    entries = json.loads((tmp_path / "mine/summary.json").read_text())["entries"]
    assert all((entry["videos"], entry["clips"]) == ("other", 1) for entry in entries)
    code, error = call_entry(eval_entry.main, *comparing[:1], "video_dataset=cats", "device=cpu")
    assert code == 2 and "video_dataset=cats is neither a path nor one of g1, push_t" in error
    # An entry with another frame stride than the first entry is neither paired nor drawn.
    slow = tmp_path / "slow"
    code, error = call_entry(
        train_entry.main, "task=video", *common, f"task.features={frames_run}",
        "task.frame_stride=2", f"run_dir={slow}",
    )  # fmt: skip
    assert code == 0, error
    code, error = call_entry(
        eval_entry.main, f"checkpoint={runs[0]}", f"checkpoint={slow}",
        f"output={tmp_path / 'both'}", "device=cpu",
    )  # fmt: skip
    assert code == 0, error
    assert json.loads((tmp_path / "both/summary.json").read_text())["paired"] == []
    # A model refuses features of another autoencoder.
    shutil.rmtree(frames_run)
    call_entry(
        train_entry.main, "task=video", "model=autoencoder", "model.channels=[8,8]", *TINY,
        "seed=1", "evaluation.final=false", f"task.path={video_folder}", f"run_dir={frames_run}",
    )  # fmt: skip
    code, error = call_entry(eval_entry.main, f"checkpoint={runs[0]}", "device=cpu")
    assert code == 2 and "is not the encoder that the model was trained with" in error


@pytest.mark.slow
def test_constant_motion_is_learned(video_folder, tmp_path, monkeypatch):
    """After a short training, predictions are better than repeating the last frame."""
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    frames_run = tmp_path / "autoencoder"
    common = [*TINY, f"task.path={video_folder}"]
    train(
        compose_config(
            *common, "model=autoencoder", "model.channels=[8,16]", "train.steps=150",
            "train.lr=5e-3", f"run_dir={frames_run}", "task=video",
        )
    )  # fmt: skip
    run = tmp_path / "run"
    config = compose_config(
        *common, "train.steps=150", "train.batch_size=16", "train.lr=5e-3", "train.ema_power=0.6",
        f"task.features={frames_run}", f"run_dir={run}", "task=video",
    )  # fmt: skip
    train(config)
    (entry,) = json.loads((run / "evaluation/summary.json").read_text())["entries"]
    assert entry["error"]["mean"] < 0.7 * entry["repeating"]["mean"]
