"""The benchmark commands at tiny size: options, measurements and tables."""

from __future__ import annotations

import json
from contextlib import ExitStack

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import (
    image_speed,
    language_speed,
    lerobot,
    render_figures,
    render_rollouts,
    robomimic,
    rollouts,
    speed,
    study_figures,
)
from benchmarks.command_line import parse_options
from benchmarks.measurements import energy_signals, generation, linear_probe
from benchmarks.measurements.classifier import ImageClassifier
from benchmarks.measurements.ood_detection import ImageGroup, detection_quality
from benchmarks.studies.images import AS_PUBLISHED, PASSES
from benchmarks.tables import control_loop as control_loop_tables
from benchmarks.tables import datasets as dataset_tables
from benchmarks.tables import images as image_tables
from benchmarks.tables import policies as policy_tables
from benchmarks.tables import video as video_tables
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.perturbations import Perturbation
from ebt_policy.evaluation.image_figures import GAP

COMMANDS = [speed, language_speed, image_speed, rollouts, render_figures, render_rollouts]


@pytest.mark.parametrize("module", COMMANDS)
def test_unknown_options_are_refused(module, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmark", "sise=xs"])
    with pytest.raises(SystemExit, match="unknown option"):
        module.main()


@pytest.mark.parametrize(
    ("module", "first_work", "other"),
    [
        (lerobot, "write_demonstrations", "updates=8000"),
        (lerobot, "write_demonstrations", "lr=0.1"),
        (robomimic, "call", "updates=8000"),
        (robomimic, "call", "demonstrations=200"),
    ],
)
def test_trainings_with_other_options_are_not_reused(
    module, first_work, other, monkeypatch, tmp_path
):
    class Started(Exception):
        """The benchmark has accepted its options."""

    def start(*arguments):
        raise Started

    def run(*options):
        monkeypatch.setattr("sys.argv", ["benchmark", f"folder={tmp_path / 'runs'}", *options])
        module.main()

    monkeypatch.setattr(module, first_work, start)
    for options in ((), ("seeds=1",)):  # Each seed has files of its own.
        with pytest.raises(Started):
            run(*options)
    with pytest.raises(SystemExit, match=rf"has trainings with .*, not {other}; give another"):
        run(other)
    (tmp_path / "runs" / "options.json").rename(tmp_path / "runs" / "old.json")
    with pytest.raises(SystemExit, match=r"has files but no options.json"):
        run()


def test_help_lists_the_options(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_options(["--help"], rounds=200, size=("xs", "s"))
    printed = capsys.readouterr().out
    assert caught.value.code == 0 and "  rounds=200\n  size=xs\n" in printed


def test_chunk_after_event_is_the_first_that_observes_it():
    spec = EnvSpec("ebt_policy/PushT-v0", 300, perturbation=Perturbation("agent", 100))
    env = spec.make()
    for seed in range(5):
        env.reset(seed=seed)
        perturbed = [
            bool(env.step(np.array([256.0, 256.0]))[-1].get("perturbed")) for _ in range(70)
        ]
        seen_from = perturbed.index(True) + 1  # first step whose observation shows the event
        chunk = energy_signals.chunk_after_event(seed, 8)
        assert 8 * (chunk - 1) < seen_from <= 8 * chunk < 8 * energy_signals.FIRST_CHUNKS
    env.close()


def test_perturbed_chunks_are_paired_with_undisturbed_ones():
    calm = {"signal": np.array([[0.0, 1.0, 2.0], [3.0, np.nan, np.nan]])}
    perturbed = {"signal": np.array([[0.0, 7.0, 8.0], [9.0, 5.0, np.nan]])}
    samples = energy_signals.unexpected(calm, perturbed, np.array([2, 1]))["signal"]
    assert samples.signal.tolist() == [2.0, 8.0, 5.0]
    assert samples.label.tolist() == [False, True, True] and samples.episode.tolist() == [
        0,
        0,
        1,
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_latencies_are_ratios_of_one_run(monkeypatch):
    monkeypatch.setattr(
        speed, "CHUNKS", {k: speed.CHUNKS[k] for k in ("DDPM-100", "energy, 2 steps, best of 8")}
    )
    result = speed.inference("4xs", 2, torch.device("cpu"))
    for latency in result.values():
        assert latency["DDPM-100"]["ddpm_100_takes"] == 1.0
        assert latency["energy, 2 steps, best of 8"]["p50"] > 0
    json.dumps(result)


def test_all_rollout_modes_give_the_same_scores():
    policy = speed.make("ebt", "xs", torch.device("cpu"))
    policy.configure_inference(steps=1, num_candidates=1)
    spec, seeds = EnvSpec("ebt_policy/PushT-v0", 20), range(100_000, 100_003)
    with ExitStack() as stack:
        envs = gymnasium.vector.SyncVectorEnv([lambda: rollouts.NamedObservations(spec.make())] * 2)
        stack.callback(envs.close)
        rollout_modes = [
            rollouts.plain(policy, spec, stack),
            rollouts.with_rollout_pool(policy, spec, 2, stack),
            rollouts.vectorised(policy, envs, spec, rollouts.in_step),
        ]
        expected, *others = [play(seeds) for play in rollout_modes]
    assert max(expected) > 0
    for scores in others:
        np.testing.assert_allclose(scores, expected, atol=1e-3)


def test_videos_of_unequal_length_are_joined(tmp_path):
    videos = {"a": [np.full((32, 32, 3), 25 * i, np.uint8) for i in range(9)], "b": []}
    videos["b"] = videos["a"][:2]
    render_rollouts.write_webp(
        render_rollouts.join_panels(videos), tmp_path / "x" / "both.webp", 60
    )
    with Image.open(tmp_path / "x" / "both.webp") as video:
        assert video.size == (2 * render_rollouts.SIDE + GAP, render_rollouts.SIDE)
        assert video.n_frames > 1  # equal frames at the end are merged into one


def test_linear_probe_is_accurate_only_with_informative_features():
    rng = np.random.default_rng(0)
    counts = {"train": 300, "validation": 100, "test": 200}
    labels = {part: rng.integers(0, 3, count) for part, count in counts.items()}
    noise = {part: rng.normal(size=(count, 3)) for part, count in counts.items()}
    informative = {part: np.eye(3)[labels[part]] + 0.1 * noise[part] for part in labels}
    uninformative = {part: rng.normal(size=(count, 3)) for part, count in counts.items()}
    right, validated = linear_probe.linear_probe(lambda part: informative[part], labels)
    assert right.shape == (200,) and right.mean() > 0.98 and validated > 0.98
    right, _ = linear_probe.linear_probe(lambda part: uninformative[part], labels)
    assert 0.2 < right.mean() < 0.47


def test_detection_quality_is_relative_to_the_usual_group():
    rng = np.random.default_rng(0)
    runs = [
        {
            "usual": {"energy": rng.normal(size=400)},
            "odd": {"energy": rng.normal(3, size=300)},
            "alike": {"energy": rng.normal(size=300)},
        }
        for _ in range(2)
    ]
    counts = {"usual": 400, "odd": 300, "alike": 300}
    groups = {name: ImageGroup(torch.zeros(n)) for name, n in counts.items()}
    quality = detection_quality(runs, groups)["energy"]
    assert quality["odd"]["auroc"]["mean"] > 0.95
    low, high = quality["alike"]["auroc"]["ci95"]
    assert low < 0.52 and high > 0.48 and quality["odd"]["reliability"]["calibration_error"] < 0.1


def test_crops_of_one_image_are_not_independent_samples():
    rng = np.random.default_rng(0)
    shift = rng.normal(size=20)  # one value for each of 20 images, each cut into 15 crops
    runs = [{"usual": {"energy": rng.normal(size=300)},
             "parts": {"energy": np.repeat(shift, 15) + rng.normal(size=300)}}]  # fmt: skip
    widths = []
    for sources in (None, np.repeat(np.arange(20), 15)):
        groups = {"usual": ImageGroup(torch.zeros(300)),
                 "parts": ImageGroup(torch.zeros(300), sources)}  # fmt: skip
        low, high = detection_quality(runs, groups)["energy"]["parts"]["auroc"]["ci95"]
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]


def test_frechet_distance_is_zero_for_equal_and_large_for_dark_images():
    torch.manual_seed(0)
    classifier = ImageClassifier(4).eval().requires_grad_(False)
    real = torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8)
    fid = generation.fit_distance(classifier, real)
    same = generation.distance(fid, real)
    dark = generation.distance(fid, real // 2)
    assert same == pytest.approx(0, abs=1e-3) and dark > 10 * abs(same) + 1e-3
    assert generation.is_correct(classifier, real, torch.zeros(300)).shape == (300,)


def test_video_models_are_listed_with_the_baseline_of_equal_size():
    def entry(name: str, **more: object) -> dict:
        value = {"mean": 0.5, "ci95": [0.4, 0.6]}
        return {
            "name": name,
            "params": 1000,
            "error": value,
            "repeating": value,
            "hard": {"change": value},
            **more,
        }

    pair = {"metric": "error", "diff": -0.1, "ci95": [-0.2, 0.0]}
    result = {
        "entries": [
            entry("ebt-4xs-seed*@steps=2", hard={"energy": {"mean": 0.7}}),
            entry("ebt-4xs-seed*@steps=1"), entry("transformer_pp-4xs-seed*"),
            entry("transformer_pp-s-seed*"),
        ],
        "paired": [
            {"a": "ebt-4xs-seed*@steps=2", "b": "transformer_pp-4xs-seed*", **pair},
            {"a": "ebt-4xs-seed*@steps=2", "b": "transformer_pp-s-seed*", **pair, "diff": 9.0},
        ],
    }  # fmt: skip
    table = video_tables.video(result)
    assert "-0.100 [-0.200, +0.000]" in table and "9.000" not in table and "| 0.70 |" in table
    assert table.splitlines()[3].startswith("| energy, System 1 | 1k | 1 | ")


def test_denoising_headline_selects_rows_of_the_full_table():
    values = {key: {"mean": 1.25, "ci95": [1.0, 1.5]} for key in image_tables.MEASURES}
    entries = [
        {"name": f"{name}-seed*@steps={steps}{AS_PUBLISHED.get(name, '')}", "params": 1000,
         "steps": steps, **values}
        for name, budgets in PASSES.items()
        for steps in budgets
    ]  # fmt: skip
    result = {"entries": entries, "bm3d": values}
    rows = image_tables.denoising(result).splitlines()
    assert len(rows) == len(entries) + 3  # plus two header lines and the row of BM3D
    assert rows[2].startswith("| energy, System 1 | 1,000 | 1 | 1.25 [1.00, 1.50] | 1.2 [1.0, 1.5]")
    some = image_tables.denoising_headline(result).splitlines()
    assert len(some) == sum(map(len, image_tables.HEADLINE.values())) + 3
    assert "twice the noise" in some[0] and "MSE" not in some[0]


def test_entries_are_found_by_old_and_new_option_names():
    stored = {"entries": [{"name": "ebt (steps 2, num_candidates 8)"}]}
    assert "ebt (steps 2, candidates 8)" in policy_tables.entry_by_name(stored)


def test_table_of_held_out_errors():
    def entry(name, error):
        value = {"mean": error, "ci95": [error - 0.1, error + 0.1]}
        return {
            "name": name,
            "error": value,
            "hold_error": value | {"mean": 0.9},
            "train_steps": 10,
        }

    pair = {"a": "ebt (steps 2, candidates 8)", "b": "bc", "diff": -0.1, "ci95": [-0.2, 0.0]}
    entries = [entry("ebt (steps 2, candidates 8)", 0.3), entry("bc", 0.4)]
    table = dataset_tables.held_out({"entries": entries, "paired": [pair]})
    assert "| behaviour cloning | 10 | 0.400 [0.300, 0.500] | -0.100 [-0.200, +0.000] |" in table
    assert "| repeating the last action |  | 0.900" in table


def test_tables_of_interventions_and_recorded_robots():
    def entry(name, success):
        value = {"mean": success, "ci95": [success - 0.1, success + 0.1]}
        return {"name": name, "score": value, "success": value}

    result = {
        "names": ["first", "interventions-10"],
        "person_minutes": {"first": [], "interventions-10": [1.0, 2.0]},
        "entries": [entry("a", 0.2), entry("b", 0.5)],
        "paired": [{"a": "a", "b": "b", "metric": "success", "diff": -0.3, "ci95": [-0.4, -0.1]}],
    }
    figure = study_figures.interventions(result)
    (curve,) = figure.axes[1].lines
    assert curve.get_xydata().tolist() == [[0, 0.2], [1.5, 0.5]]
    table = control_loop_tables.interventions(result)
    assert "| 10 interventions | 1.5 |" in table and "+0.300 [+0.100, +0.400]" in table
    timed = {
        **entry("x", 0.5), "recorded": {"episodes": 3, "rows": 1200}, "rate_hz": 10.0,
        "late_ms": {"p50": 0.2, "p95": 0.3, "p99": 0.4}, "latency_ms": None,
    }  # fmt: skip
    table = control_loop_tables.record_train_run({"updates": 4000, "entries": {"robot": timed}})
    assert "4,000 updates" in table and "0.2 / 0.3 / 0.4" in table and "1,200" in table
