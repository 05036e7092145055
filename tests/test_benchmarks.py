"""The commands behind the README's numbers run (tiny), and refuse what they do not know."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from conftest import compose_config
from PIL import Image

from benchmarks import (
    ablations,
    compare,
    denoising,
    energy,
    generation,
    image_speed,
    language,
    language_speed,
    manipulation,
    masked_text,
    recovery,
    representation,
    rollouts,
    scaling,
    speed,
    video,
)
from benchmarks import render_figures as pictures
from benchmarks import render_rollouts as films
from benchmarks import render_video as video_film
from benchmarks.classifier import Judge
from ebt_policy.data.normalizer import Normalizer
from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.perturbations import Perturbation
from ebt_policy.evaluation.entries import parse_checkpoint
from ebt_policy.evaluation.image_figures import GAP
from ebt_policy.policies import build_policy

MODULES = [
    speed, compare, ablations, energy, recovery, pictures, manipulation, rollouts, films, language,
    language_speed, masked_text, scaling, denoising, generation,
    image_speed, representation, video, video_film,
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_unknown_settings_are_refused(module, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmark", "sise=xs"])
    with pytest.raises(SystemExit, match="unknown settings"):
        module.main()


@pytest.mark.parametrize("bad", ["seeds=many", "seeds"])
def test_settings_of_another_type_are_refused(bad, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmark", bad])
    with pytest.raises(SystemExit, match="seeds"):
        recovery.main()


def test_an_unknown_suite_is_refused_before_anything_is_recorded(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmark", "suite=chess"])
    with pytest.raises(SystemExit, match="suite must be one of metaworld_10, mujoco, cameras"):
        manipulation.main()


def test_tasks_of_a_suite_are_command_lines():
    assert manipulation.task_overrides("lift") == ["task=lift"]
    selected = manipulation.task_overrides("metaworld-door-open")
    assert compose_config(*selected)["task"]["name"] == "metaworld-door-open"
    for name in ("push_t_image", "lift-cameras", "metaworld-drawer-open-cameras"):
        task = compose_config(*manipulation.task_overrides(name))["task"]
        assert task["cameras"] and name.startswith(task["name"])


def test_every_suite_says_what_it_is_learned_from():
    suites = {file.stem for file in Path("configs/suite").glob("*.yaml")}
    assert suites == set(manipulation.EFFORTS)


def test_an_unknown_study_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmark", "study=can"])
    with pytest.raises(SystemExit, match="study must be one of push_t, push_t_selection"):
        recovery.main()


SUITES = {  # its own runs, those of others that it may play, its entries
    "compare": (compare.RUNS, {}, compare.TABLE + compare.NEXT + compare.SELECTION),
    "ablations": (ablations.RUNS, {}, ablations.ENTRIES),
    "manipulation": ({m: [f"model={m}"] for m in manipulation.MODELS}, {}, manipulation.ENTRIES),
    **{
        f"recovery of {name}": (
            study.train,
            compare.RUNS
            if name.startswith("push_t")
            else {m: [f"model={m}"] for m in manipulation.MODELS},
            study.entries,
        )
        for name, study in recovery.STUDIES.items()
    },
}


@pytest.mark.parametrize(("own", "others", "entries"), SUITES.values(), ids=SUITES)
def test_every_entry_is_of_a_trained_run(own, others, entries):
    assert {entry.partition("@")[0] for entry in entries} - set(others) == set(own)


@pytest.mark.parametrize(("own", "others", "entries"), SUITES.values(), ids=SUITES)
def test_every_run_and_entry_can_be_configured(own, others, entries):
    for name, overrides in (own | others).items():
        config = compose_config("train.minutes=10", *overrides)
        shape = {"obs_dim": 20, "action_dim": 2, "horizon": 16, "n_obs_steps": 2}
        shape |= {"n_action_steps": 8, "relative_to": config["task"]["relative_to"]}
        if config["model"]["name"] != "ebt":
            config["objective"] = None
        rows = {"obs": torch.rand(8, 20), "action": torch.rand(8, 2)}
        policy = build_policy({**config, "shape": shape}, Normalizer.fit(rows))
        for entry in entries:
            if entry.partition("@")[0] == name:
                policy.configure_inference(**parse_checkpoint(entry)[1])


def test_a_chunk_after_an_event_is_the_first_that_shows_it():
    spec = EnvSpec("ebt_policy/PushT-v0", 300, perturbation=Perturbation("agent", 100))
    env = spec.make()
    for seed in range(5):
        env.reset(seed=seed)
        perturbed = [
            bool(env.step(np.array([256.0, 256.0]))[-1].get("perturbed")) for _ in range(70)
        ]
        seen_from = perturbed.index(True) + 1  # the step after which the observation shows it
        chunk = energy.chunk_after_event(seed, 8)
        assert 8 * (chunk - 1) < seen_from <= 8 * chunk < 8 * energy.EARLY
    env.close()


def test_an_unexpected_chunk_is_compared_with_the_same_one_of_a_calm_episode():
    calm = {"signal": np.array([[0.0, 1.0, 2.0], [3.0, np.nan, np.nan]])}
    wrong = {"signal": np.array([[0.0, 7.0, 8.0], [9.0, 5.0, np.nan]])}
    found = energy.unexpected(calm, wrong, np.array([2, 1]))["signal"]
    assert found.signal.tolist() == [2.0, 8.0, 5.0]
    assert found.happened.tolist() == [False, True, True] and found.episode.tolist() == [0, 0, 1]


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


def test_all_ways_of_playing_play_the_same_episodes():
    policy = speed.make("ebt", "xs", torch.device("cpu"))
    policy.configure_inference(steps=1, candidates=1)
    spec, seeds = EnvSpec("ebt_policy/PushT-v0", 20), range(100_000, 100_003)
    with ExitStack() as stack:
        envs = gymnasium.vector.SyncVectorEnv([lambda: rollouts.Named(spec.make())] * 2)
        stack.callback(envs.close)
        ways = [
            rollouts.plain(policy, spec, stack),
            rollouts.ours(policy, spec, 2, stack),
            rollouts.vectorised(policy, envs, spec, rollouts.in_step),
        ]
        one, *others = [play(seeds) for play in ways]
    assert max(one) > 0
    for scores in others:
        np.testing.assert_allclose(scores, one, atol=1e-3)


def test_films_of_unequal_length_become_one(tmp_path):
    films_ = {"a": [np.full((32, 32, 3), 25 * i, np.uint8) for i in range(9)], "b": []}
    films_["b"] = films_["a"][:2]
    films.animation(films.together(films_), tmp_path / "x" / "both.webp", 60)
    with Image.open(tmp_path / "x" / "both.webp") as film:
        assert film.size == (2 * films.SIDE + GAP, films.SIDE)
        assert film.n_frames > 1  # equal ones at the end are one, shown longer


def test_a_probe_finds_what_is_there_and_nothing_more():
    rng = np.random.default_rng(0)
    labels = {part: rng.integers(0, 3, n) for part, n in
              (("train", 300), ("validation", 100), ("test", 200))}  # fmt: skip
    told = {part: np.eye(3)[of] + 0.1 * rng.normal(size=(len(of), 3)) for part, of in
            labels.items()}  # fmt: skip
    nothing = {part: rng.normal(size=(len(of), 3)) for part, of in labels.items()}
    right, validated = representation.probed(lambda part: told[part], labels)
    assert right.shape == (200,) and right.mean() > 0.98 and validated > 0.98
    right, _ = representation.probed(lambda part: nothing[part], labels)
    assert 0.2 < right.mean() < 0.47


def test_a_detector_is_measured_against_what_is_usual():
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
    kinds = {name: representation.Kind(torch.zeros(n)) for name, n in counts.items()}
    found = representation.detected(runs, kinds)["energy"]
    assert found["odd"]["auroc"]["mean"] > 0.95
    low, high = found["alike"]["auroc"]["ci95"]
    assert low < 0.52 and high > 0.48 and found["odd"]["reliability"]["calibration_error"] < 0.1


def test_parts_of_one_image_are_no_independent_samples():
    rng = np.random.default_rng(0)
    shift = rng.normal(size=20)  # of 20 images, of which there are 15 parts each
    runs = [{"usual": {"energy": rng.normal(size=300)},
             "parts": {"energy": np.repeat(shift, 15) + rng.normal(size=300)}}]  # fmt: skip
    widths = []
    for sources in (None, np.repeat(np.arange(20), 15)):
        kinds = {"usual": representation.Kind(torch.zeros(300)),
                 "parts": representation.Kind(torch.zeros(300), sources)}  # fmt: skip
        low, high = representation.detected(runs, kinds)["energy"]["parts"]["auroc"]["ci95"]
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]


def test_images_are_as_far_from_others_as_their_features_are():
    torch.manual_seed(0)
    judge = Judge(4).eval().requires_grad_(False)
    real = torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8)
    fid = generation.distance(judge, real)
    same = generation.measured(fid, real)
    dark = generation.measured(fid, real // 2)
    assert same == pytest.approx(0, abs=1e-3) and dark > 10 * abs(same) + 1e-3
    assert generation.judged(judge, real, torch.zeros(300)).shape == (300,)


def test_models_of_video_stand_beside_the_baseline_of_their_size():
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
    table = video.table(result)
    assert "-0.100 [-0.200, +0.000]" in table and "9.000" not in table and "| 0.70 |" in table
    assert table.splitlines()[3].startswith("| energy, System 1 | 1k | 1 | ")


def test_the_headline_of_denoising_is_part_of_its_table():
    values = {key: {"mean": 1.25, "ci95": [1.0, 1.5]} for key in denoising.MEASURES}
    entries = [
        {"name": f"{name}-seed*@steps={steps}{denoising.HOW.get(name, '')}", "params": 1000,
         "steps": steps, **values}
        for name, budgets in denoising.PASSES.items()
        for steps in budgets
    ]  # fmt: skip
    result = {"entries": entries, "bm3d": values}
    rows = denoising.table(result).splitlines()
    assert len(rows) == len(entries) + 3  # and the header's two, and BM3D's
    assert rows[2].startswith("| energy, System 1 | 1,000 | 1 | 1.25 [1.00, 1.50] | 1.2 [1.0, 1.5]")
    some = denoising.headline(result).splitlines()
    assert len(some) == sum(map(len, denoising.HEADLINE.values())) + 3
    assert "twice the noise" in some[0] and "MSE" not in some[0]
