"""Record demonstrations: successful episodes of a scripted expert, or of a trained policy.

    python -m ebt_policy.record task=lift episodes=200

Every setting is in ``configs/record.yaml``. Seeds count up from 0 and stay below those of
evaluations. What is finished waits in `<output>.partial`, so that the same command goes on after a
kill.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from ebt_policy.cli import hydra_arguments, report_errors
from ebt_policy.config import options
from ebt_policy.data import push_t
from ebt_policy.data.episode_store import append_episodes, read_episodes, write_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.data.recordings import recording
from ebt_policy.envs.env_spec import EVALUATION_SEED, EnvSpec
from ebt_policy.envs.perturbations import Perturbation
from ebt_policy.envs.rollout import EpisodeResult, Policy, RolloutPool
from ebt_policy.errors import ConfigError
from ebt_policy.io.output import output_store
from ebt_policy.policies import load_policy
from ebt_policy.policies.robustness import known_perturbations, parse_perturbations
from ebt_policy.policies.task_config import PolicyTaskConfig

console = Console()
PATIENCE = 100  # attempts before a success rate below MIN_SUCCESS_RATE is called hopeless
MIN_SUCCESS_RATE = 0.02
# What is kept of each step; a simulator goes on exactly only from a state in full precision.
ROWS = {"obs": np.float32, "state": np.float64, "action": np.float32}


def record(
    policy: Policy | None,
    spec: EnvSpec,
    episodes: int,
    output: str | Path,
    *,
    attrs: dict[str, Any],
    workers: int = 8,
    write: Callable[[Path, Episodes], None] = write_episodes,
    on_progress: Callable[[int, int], None] | None = None,
) -> Episodes:
    """Write `episodes` successful episodes to `output` and return them.

    The arrays are `obs` (N, Do) float32 and `state` (N, S), before each step, and `action` (N, A)
    float32, as executed. The content depends on the policy alone: not on interruptions, and on
    `workers` only through the rounding of the policy's batched arithmetic.

    Args:
        policy: who plays; None for the environment's own expert.
        output: a file or folder that must not exist.
        write: writes the finished episodes there, an episode store by default.
        attrs: JSON attributes of the file; `seeds`, the seed of each episode, is added.
        on_progress: called with (successes, attempts), at the start and after each episode.

    Raises:
        FileExistsError: `output` exists.
        ConfigError: `output` cannot be written, or is being recorded by another process.
        ValueError: the interrupted recording beside `output` has other attributes, or the policy
            hardly ever succeeds.
        RuntimeError: a worker failed.
    """
    output = Path(output)
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    if output.exists():
        raise FileExistsError(f"{output} exists; remove it or choose another output")
    partial = output.with_name(output.name + ".partial")
    with output_store(output, "output"):  # two processes would mix their episodes
        kept, seed = _resume(partial, attrs)
        notify = on_progress or (lambda successes, attempts: None)
        notify(kept, seed)
        if kept < episodes:
            with RolloutPool(spec, workers) as pool:
                while kept < episodes:
                    _check_hope(kept, seed)
                    wave = range(seed, min(seed + 2 * workers, EVALUATION_SEED))
                    counter = _Counter(kept, seed, notify)
                    if policy is None:
                        results = pool.demonstrate(wave, on_episode=counter)
                    else:
                        results = pool.rollout(policy, wave, on_episode=counter, collect=True)
                    _keep(partial, results, attrs)
                    kept, seed = counter.successes, wave.stop
        stored = read_episodes(partial).select(range(episodes))
        seeds = stored.arrays["seed"][stored.ends - 1].tolist()
        arrays = {key: stored.arrays[key] for key in ROWS}
        finished = Episodes(arrays, stored.ends, {**attrs, "seeds": seeds})
        write(output, finished)
        shutil.rmtree(partial)
        return finished


class _Counter:
    """Counts the episodes of a wave as they finish."""

    def __init__(self, successes: int, attempts: int, notify: Callable[[int, int], None]):
        self.successes, self._attempts, self._notify = successes, attempts, notify

    def __call__(self, result: EpisodeResult) -> None:
        self.successes += result.success
        self._attempts += 1
        self._notify(self.successes, self._attempts)


def _resume(partial: Path, attrs: dict[str, Any]) -> tuple[int, int]:
    """Episodes kept so far and the next seed to try.

    The seeds lie in the store itself, with the episodes: the two cannot disagree after a kill.
    Failures after the last success are tried again, with the same outcome.
    """
    if not partial.exists():
        return 0, 0
    stored = read_episodes(partial, keys=["seed"])
    if stored.attrs != json.loads(json.dumps(attrs)):
        raise ValueError(
            f"{partial} is an interrupted recording with other settings ({stored.attrs}); repeat "
            "its command to finish it, or remove it"
        )
    return len(stored), int(stored.arrays["seed"][-1]) + 1


def _keep(partial: Path, results: list[EpisodeResult], attrs: dict[str, Any]) -> None:
    good = [result for result in results if result.success]
    if not good:
        return
    lengths = [result.length for result in good]
    rows = [result.rows or {} for result in good]
    arrays = {key: np.concatenate([r[key] for r in rows]).astype(ROWS[key]) for key in ROWS}
    arrays["seed"] = np.repeat(np.array([r.seed for r in good], dtype=np.int64), lengths)
    wave = Episodes(arrays, np.cumsum(lengths), attrs)
    if partial.exists():
        append_episodes(partial, wave)
    else:
        write_episodes(partial, wave)


def _check_hope(kept: int, attempts: int) -> None:
    hopeless = attempts >= PATIENCE and kept < MIN_SUCCESS_RATE * attempts
    if hopeless or attempts >= EVALUATION_SEED:
        raise ValueError(
            f"only {kept} of {attempts} episodes succeeded; record with a better policy"
        )


@dataclass(frozen=True)
class RecordConfig:
    """What ``configs/record.yaml`` holds, which says what it is for."""

    task: dict[str, Any]
    checkpoint: str | None
    episodes: int
    output: str | None
    workers: int
    perturb: list[str] | None


def _perturbation(words: list[str], spec: EnvSpec) -> Perturbation:
    _, *found = parse_perturbations(words, known_perturbations(spec))
    if len(found) != 1 or found[0] is None:
        raise ConfigError(
            f"perturb={','.join(words)} is several; record with one at one strength, such as "
            f"perturb={str(found[0]).replace(' ', '=')}."
        )
    return found[0]


def run(config: dict[str, Any]) -> None:
    """Record what the configuration asks for.

    Raises:
        ConfigError, CheckpointError, FileExistsError: before anything is played.
    """
    settings = options(RecordConfig, config, "the configuration")
    task = PolicyTaskConfig.of(config)
    policy, spec, source = None, task.env_spec(), "Scripted expert"
    if settings.checkpoint is not None:
        policy = load_policy(settings.checkpoint)
        if policy.config["task"]["name"] != task.name:
            raise ConfigError(
                f"{settings.checkpoint} is a policy for task={policy.config['task']['name']}, "
                f"not for {task.name}."
            )
        spec = PolicyTaskConfig.of(policy.config).env_spec()
        trained = policy.config.get("trained", {}).get("steps", 0)
        source = (
            f"{policy.name} policy of {policy.parameter_count:,} parameters, trained for "
            f"{trained:,} updates on {policy.config.get('demos')} demonstrations"
        )
    elif task.family in ("push_t", "adroit_door"):
        raise ConfigError(
            f"task={task.name} has no scripted expert; say whose episodes to record: "
            "checkpoint=RUN."
        )
    elif task.family == "robosuite":
        spec = replace(spec, kwargs={**spec.kwargs, "actions": "delta"})  # as robomimic's files
    if settings.perturb is not None:
        spec = replace(spec, perturbation=_perturbation(settings.perturb, spec))
        source += f", disturbed by {spec.perturbation}"
    output = Path(settings.output or recording(task.name))
    attrs: dict[str, Any] = {"source": f"Successful episodes in {spec.env_id}: {source}."}
    attrs = {**(push_t.ATTRS if task.family == "push_t" else {}), **attrs}
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, "{task.fields[rate]}", console=console) as progress:
        bar = progress.add_task("recording", total=settings.episodes, rate="")

        def show(successes: int, attempts: int) -> None:
            rate = f"{successes} successes in {attempts} attempts"
            progress.update(bar, completed=min(successes, settings.episodes), rate=rate)

        def write(path: Path, episodes: Episodes) -> None:
            from ebt_policy.data.robomimic_writer import write_robomimic  # loads the simulator

            written = progress.add_task("observations", total=len(episodes), rate="")
            write_robomimic(
                path, str(task.scene), episodes,
                lambda done: progress.update(written, completed=done),
            )  # fmt: skip

        finished = record(
            policy, spec, settings.episodes, output, attrs=attrs, workers=settings.workers,
            write=write if task.family == "robosuite" else write_episodes, on_progress=show,
        )  # fmt: skip
    console.print(
        f"{output}: {len(finished)} episodes, {finished.ends[-1]} steps",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def main() -> None:
    with report_errors():
        sys.argv[1:] = hydra_arguments(sys.argv[1:], "perturb")
    _main()


@hydra.main(version_base="1.3", config_path="pkg://ebt_policy.configs", config_name="record")
def _main(cfg: DictConfig) -> None:
    with report_errors():
        config = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(config, dict)
        run({str(key): value for key, value in config.items()})


if __name__ == "__main__":
    main()
