"""Measurements of studies that use the evaluations of ``ebt_policy.eval``."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from benchmarks.device import DEVICE
from benchmarks.results import store_text
from benchmarks.study import StudyContext
from ebt_policy.envs.env_spec import EVALUATION_SEED
from ebt_policy.image.evaluate import DenoisingConfig, evaluate_images
from ebt_policy.language.evaluate import evaluate_language
from ebt_policy.policies.eval_config import EvalConfig
from ebt_policy.policies.evaluate import evaluate_policies
from ebt_policy.policies.robustness import evaluate_robustness
from ebt_policy.policies.suite import Suite, evaluate_suite
from ebt_policy.video.evaluate import evaluate_video


def load_suite_config(name: str) -> Suite:
    """Return a packaged suite of tasks."""
    file = resources.files("ebt_policy.configs").joinpath(f"suite/{name}.yaml")
    return Suite(**yaml.safe_load(file.read_text()))


@dataclass(frozen=True)
class PolicyEvaluation:
    """Evaluation of policies on the same episodes of a task; it also stores a Markdown table.

    The study has the option ``episodes``.

    Attributes:
        seed: seed of the first episode.
        videos: number of episodes to record for each entry.
        workers: number of processes that play episodes.
    """

    seed: int = EVALUATION_SEED
    videos: int = 0
    workers: int = 8

    def __call__(self, context: StudyContext) -> dict[str, Any]:
        config = EvalConfig(context.options.episodes, self.seed, self.videos, self.workers)
        result = evaluate_policies(
            context.checkpoints(), config,
            output=context.output, device=DEVICE, command=context.command,
        )  # fmt: skip
        table = (context.output / "table.md").read_text()
        store_text(f"{context.result}.md", table, context.results)
        return result


@dataclass(frozen=True)
class RobustnessEvaluation:
    """Evaluation of policies under the same perturbations.

    The study has the option ``episodes``.

    Attributes:
        perturbations: ``all``, kinds, or kinds with strengths (``kick=50``).
        seed: seed of the first episode.
        workers: number of processes that play episodes.
    """

    perturbations: tuple[str, ...]
    seed: int = EVALUATION_SEED
    workers: int = 10

    def __call__(self, context: StudyContext) -> dict[str, Any]:
        return evaluate_robustness(
            context.checkpoints(),
            EvalConfig(context.options.episodes, self.seed, videos=1, workers=self.workers),
            self.perturbations,
            output=context.output, device=DEVICE, command=context.command,
        )  # fmt: skip


@dataclass(frozen=True)
class SuiteEvaluation:
    """Evaluation of policies on a suite of tasks; it also stores a Markdown table and a figure.

    The study has the option ``episodes``.

    Attributes:
        suite: name of the suite.
        seed: seed of the first episode.
        workers: number of processes that play episodes.
    """

    suite: str
    seed: int = EVALUATION_SEED
    workers: int = 12

    def __call__(self, context: StudyContext) -> dict[str, Any]:
        config = EvalConfig(context.options.episodes, self.seed, 0, self.workers)
        result = evaluate_suite(
            context.checkpoints(), config, load_suite_config(self.suite),
            output=context.output, device=DEVICE, command=context.command,
        )  # fmt: skip
        table = (context.output / "suite.md").read_text()
        store_text(f"{context.result}.md", table, context.results)
        context.assets.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(context.output / "suite.svg", context.assets / f"{context.result}.svg")
        return result


@dataclass(frozen=True)
class LanguageEvaluation:
    """Evaluation of language models on the text of their training and on other texts.

    Attributes:
        corpora: names of the texts; the first one is the text of the training.
    """

    corpora: tuple[str, ...]

    def __call__(self, context: StudyContext) -> dict[str, Any]:
        results = {}
        for corpus in self.corpora:
            results[corpus] = evaluate_language(
                context.checkpoints(),
                corpus=None if corpus == self.corpora[0] else corpus,
                output=context.output / corpus, device=DEVICE, command=context.command,
            )  # fmt: skip
        for result in results.values():
            for entry in result["entries"]:
                if energies := (entry.get("thinking") or {}).get("energies"):
                    del energies["tokens"]  # They are text of the corpus, which is not published.
        return results


@dataclass(frozen=True)
class ImageEvaluation:
    """Evaluation of denoisers on a set of images.

    Attributes:
        images: name of the set; None for the test images of the training set.
        noise: noise level; twice the level is tested, too.
    """

    images: str | None
    noise: int

    def __call__(self, context: StudyContext) -> dict[str, Any]:
        return evaluate_images(
            context.checkpoints(), DenoisingConfig(self.images, self.noise),
            output=context.output, device=DEVICE, command=context.command,
        )  # fmt: skip


def video_evaluation(context: StudyContext) -> dict[str, Any]:
    """Return the errors of video models on their test clips.

    Entries of the group ``pictures`` are also drawn as strips and rollouts in the output folder.
    """
    result = evaluate_video(
        context.checkpoints(), output=context.output, device=DEVICE, command=context.command
    )
    evaluate_video(
        context.checkpoints("pictures"),
        output=context.output / "pictures", device=DEVICE, command=context.command,
    )  # fmt: skip
    return result
