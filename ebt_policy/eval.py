"""Evaluate: ``python -m ebt_policy.eval checkpoint=A [checkpoint=B@steps=2 ...]``.

Plays seeded episodes, compares the policies on the same seeds, and leaves ``episodes.jsonl``,
``summary.json``, ``table.md``, MP4s and a self-contained ``report.html``. With ``perturb=`` see
``recovery.py``, with ``suite=`` see ``suite.py``, for language models ``language.py``, for those of
images ``restoring.py``, of video ``foreseeing.py``. Every option is in ``configs/eval.yaml``.
"""

from __future__ import annotations

import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import hydra
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markdown import Markdown

from ebt_policy.cli import hydra_arguments, pick_device, report_errors
from ebt_policy.config import ConfigError, options
from ebt_policy.envs.env_spec import EVALUATION_SEED, EnvSpec
from ebt_policy.envs.rollout import batch_observations
from ebt_policy.evaluation.contestants import (
    EvalEntry,
    check_envs,
    kind_of,
    load_contestants,
    parse_checkpoint,
)
from ebt_policy.evaluation.figures import (
    chunk_picture,
    energy_landscape,
    energy_over_descent,
    score_histogram,
    training_curve,
)
from ebt_policy.evaluation.protocol import EvalConfig
from ebt_policy.evaluation.report import write_report
from ebt_policy.evaluation.statistics import percentiles
from ebt_policy.evaluation.summary import EPISODE_KEYS, POLICIES, entry_summary, write_results
from ebt_policy.io.output import output_folder
from ebt_policy.policies import Policy
from ebt_policy.policies.cached_rollouts import pieces_of, play_pieces
from ebt_policy.policies.demonstrations import PolicyTaskConfig
from ebt_policy.policies.energy import EnergyPolicy
from ebt_policy.policies.energy_slice import energy_plane
from ebt_policy.policies.robustness import evaluate_recovery
from ebt_policy.policies.suite import Suite, evaluate_suite

console = Console()
LATENCY_CALLS = 200  # so that the 99th percentile is not simply the slowest


def batch_one_latency(policy: Policy, spec: EnvSpec, seed: int) -> dict[str, float]:
    """Milliseconds of one chunk for one robot, p50, p95 and p99 of repeated calls."""
    env = spec.make()
    first, _ = env.reset(seed=seed)
    env.close()
    obs = batch_observations([spec.stack_history([first] * spec.n_obs_steps)])
    times = []
    for call in range(LATENCY_CALLS + 3):
        generator = torch.Generator().manual_seed(call)
        start = time.perf_counter()
        policy.predict_chunk(obs, generator=generator).actions.cpu()
        times.append((time.perf_counter() - start) * 1e3)
    return percentiles(times[3:])  # the first calls warm up


def evaluate(
    checkpoints: list[str],
    protocol: EvalConfig,
    *,
    output: Path,
    device: torch.device,
    command: str,
) -> dict[str, Any]:
    """Play, compare, report; returns what ``summary.json`` holds.

    Raises:
        CheckpointError, ConfigError: before anything is played.
    """
    contestants = load_contestants(checkpoints, device)
    check_envs(contestants, videos=protocol.videos > 0)
    pieces = {one.name: pieces_of(one, one.task_name, one.env_spec) for one in contestants}
    played = play_pieces(
        list(chain(*pieces.values())), protocol, output, "played.jsonl", EPISODE_KEYS
    )
    entries: list[Any] = []
    for one in contestants:
        rows = [
            row | {"train_seed": piece.policy.config.get("seed")}
            for piece in pieces[one.name]
            for row in played[piece.key]
        ]
        summary = entry_summary(one.name, one.info(), rows, command)
        # The rollouts' latency is a batch's; a robot waits for a batch of one.
        summary["latency_ms"] = batch_one_latency(one.policy, one.env_spec, protocol.seed)
        entries.append((summary, rows))
    result = write_results(output, entries)
    console.print(Markdown((output / "table.md").read_text()))
    report = _report(contestants, entries, result, output, command)
    console.print(f"report: {report}", markup=False, soft_wrap=True)
    return result


def _report(
    contestants: list[EvalEntry], entries: list[Any], result: dict[str, Any], output: Path,
    command: str,
) -> Path:  # fmt: skip
    task = PolicyTaskConfig.of(contestants[0].policy.config)
    figures = [("Scores", "Best reward of each episode.", score_histogram(entries))]
    energetic = [one for one in contestants if isinstance(one.policy, EnergyPolicy)]
    if energetic:
        figures += _energy_figures(energetic[0])
    shown = set()
    for one in contestants:
        log = one.runs[0] / "log.jsonl"
        if log.is_file() and log not in shown:
            shown.add(log)
            try:
                figures.append((f"Training of {one.runs[0].name}", "", training_curve(log)))
            except ValueError as error:  # say, a run killed before its first line
                console.print(f"no training curve: {error}", markup=False, soft_wrap=True)
    videos = [
        (f"{summary['name']}, seed {row['seed']}, score {row['score']:.2f}", row["video"])
        for summary, rows in entries
        for row in rows
        if row["video"]
    ]
    return write_report(
        output / "report.html",
        title=task.name,
        comparison=result,
        shown=POLICIES,
        figures=figures,
        videos=videos,
        notes=[
            f"At most {task.env_spec().max_steps} steps an episode; its score is the best reward "
            "of any step.",
            "Latency is that of one chunk at batch size 1, on the device of the evaluation.",
            f"Made by: {command}",
        ],
    )


def _energy_figures(one: EvalEntry) -> list[tuple[str, str, Figure]]:
    """Pictures of the landscape at the start of an episode."""
    assert isinstance(one.policy, EnergyPolicy)
    spec = one.env_spec
    env = spec.make()
    first, _ = env.reset(seed=EVALUATION_SEED)
    from_above = hasattr(env.unwrapped, "draw_plan")  # actions are places in the picture
    env.close()
    plane = energy_plane(
        one.policy, batch_observations([spec.stack_history([first] * spec.n_obs_steps)])
    )
    axes = ("first principal axis of the candidates", "second principal axis")
    figures = []
    if from_above:
        env = spec.make(render_mode="rgb_array")
        env.reset(seed=EVALUATION_SEED)
        frame: Any = env.render()
        env.close()
        figures.append(
            (
                "Candidate chunks",
                f"Where {len(plane.energies)} descents of {one.name} end.",
                chunk_picture(frame, plane.chunks[-1], plane.best, plane.energies),
            )
        )
    return [
        *figures,
        (
            "Energy landscape",
            "The plane through the chosen chunk in which candidates differ most, with three "
            "descents.",
            energy_landscape(
                plane.x, plane.y, plane.energy, plane.paths[:3], plane.paths[:, -1], axes
            ),
        ),
        (
            "Energy over descent",
            "Energy of candidates while they descend, for one observation.",
            energy_over_descent({one.name: plane.trace}),
        ),
    ]


def _default_output(given: list[str], suite: Suite | None) -> Path:
    """``results/`` and what is evaluated, on which suite, and how."""
    words = []
    for text in given:
        path, changes = parse_checkpoint(text)
        words.append("-".join([path.resolve().name, *(f"{k}{v}" for k, v in changes.items())]))
    name = "-vs-".join(dict.fromkeys(words))
    return Path("results") / (f"{suite.name}-{name}" if suite else name)[:200]


@hydra.main(version_base="1.3", config_path="pkg://ebt_policy.configs", config_name="eval")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        if "checkpoint" not in cfg or not cfg.checkpoint:
            raise ConfigError("missing required option checkpoint=RUN (may be repeated).")
        given = [cfg.checkpoint] if isinstance(cfg.checkpoint, str) else list(cfg.checkpoint)
        suite = None
        if cfg.get("suite"):
            section: Any = OmegaConf.to_container(cfg.suite, resolve=True)
            suite = options(Suite, section, "suite")
            if cfg.perturb:
                raise ConfigError("suite= and perturb= do not go together; leave one out.")
        protocol = {k: cfg[k] for k in ("episodes", "seed", "videos", "workers")}
        what: dict[str, Any] = {
            "output": Path(str(cfg.output)) if cfg.output else _default_output(given, suite),
            "device": pick_device(cfg.device),
            "command": " ".join(["python -m ebt_policy.eval", *_original]),
        }
        with output_folder(what["output"], "output"):
            _evaluate_kind(cfg, [str(text) for text in given], protocol, suite, what)


def _evaluate_kind(
    cfg: DictConfig, checkpoints: list[str], protocol: dict[str, Any], suite: Suite | None,
    what: dict[str, Any],
) -> None:  # fmt: skip
    kind = kind_of(checkpoints[0])
    for key, of in ONLY_FOR.items():
        if cfg.get(key) is not None and kind and kind != of:
            raise ConfigError(f"{key}= is for {of}; {checkpoints[0]} holds {kind}.")
    if kind == "a model of images":
        from ebt_policy.image.evaluate import RestoringOptions, evaluate_images

        chosen = {"images": cfg.images, "noise": cfg.noise}
        evaluate_images(checkpoints, options(RestoringOptions, chosen, "the evaluation"), **what)
        return
    if kind in ("a model of video", "an autoencoder"):
        from ebt_policy.video.evaluate import evaluate_video

        other = None if cfg.footage is None else str(cfg.footage)
        evaluate_video(checkpoints, footage=other, **what)
        return
    if kind == "a model of text":
        from ebt_policy.language.evaluate import (
            evaluate_language,  # asks for libraries robots do not
        )

        evaluate_language(checkpoints, corpus=cfg.corpus, **what)
        return
    checked = options(EvalConfig, protocol, "the evaluation")
    if suite:
        evaluate_suite(checkpoints, checked, suite, **what)
    elif cfg.perturb:
        words = cfg.perturb if isinstance(cfg.perturb, str) else list(cfg.perturb)
        evaluate_recovery(checkpoints, checked, words, **what)
    else:
        evaluate(checkpoints, checked, **what)


ONLY_FOR = {"suite": "a policy", "perturb": "a policy", "corpus": "a model of text",
            "images": "a model of images", "noise": "a model of images",
            "footage": "a model of video"}  # fmt: skip
_original: list[str] = []


def main() -> None:
    _original[:] = sys.argv[1:]
    with report_errors():
        sys.argv[1:] = hydra_arguments(sys.argv[1:], "checkpoint", "perturb")
    _main()


if __name__ == "__main__":
    main()
