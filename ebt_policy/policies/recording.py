"""Recording of successful episodes as demonstrations, resumable after an interruption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.data.episode_store import append_episodes, read_episodes, write_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.envs.env_spec import EVALUATION_SEED, EnvSpec
from ebt_policy.envs.perturbations import Perturbation
from ebt_policy.envs.rollout import EpisodeResult, Policy, RolloutPool
from ebt_policy.errors import ConfigError, OutputError
from ebt_policy.evaluation.entries import parse_checkpoint
from ebt_policy.io.output import output_store
from ebt_policy.policies.loading import load_policy
from ebt_policy.policies.robustness import known_perturbations, parse_perturbations
from ebt_policy.policies.task_config import PolicyTaskConfig

PATIENCE = 100  # attempts after which a success rate below MIN_SUCCESS_RATE ends the recording
MIN_SUCCESS_RATE = 0.02
# Arrays of a recording. A simulator reproduces a state exactly only in full precision.
ROW_DTYPES = {"obs": np.float32, "state": np.float64, "action": np.float32}


@dataclass(frozen=True)
class Demonstrator:
    """The policy or scripted expert whose episodes are recorded, and its environment.

    Attributes:
        policy: None for the environment's own expert.
        spec: the environment.
        attrs: JSON attributes of the recording, which describe its source.
    """

    policy: Policy | None
    spec: EnvSpec
    attrs: dict[str, Any]


def find_demonstrator(
    task: PolicyTaskConfig, checkpoint: str | None, perturb: list[str] | None
) -> Demonstrator:
    """Return the demonstrator of a task: the policy of a checkpoint, or the scripted expert.

    Args:
        task: the task to record.
        checkpoint: ``RUN[@name=value,...]`` as for an evaluation; None for the scripted expert.
        perturb: one perturbation at one strength, ``["object=8"]``, or None.

    Raises:
        ConfigError: the task has no scripted expert, the checkpoint belongs to another task, or
            `perturb` names an unknown perturbation or several perturbations.
        CheckpointError: the checkpoint cannot be read.
    """
    policy, spec, source = None, task.env_spec(), "Scripted expert"
    if checkpoint is not None:
        path, changes = parse_checkpoint(checkpoint)
        policy = load_policy(path)
        policy.configure_inference(**changes)
        policy_task = PolicyTaskConfig.from_config(policy.config)
        if policy_task.name != task.name:
            raise ConfigError(
                f"checkpoint={checkpoint} is a policy for task={policy_task.name}, "
                f"not for task={task.name}."
            )
        spec = replace(policy_task.env_spec(), max_steps=spec.max_steps)
        num_updates = policy.config.get("trained", {}).get("steps", 0)
        source = (
            f"{policy.name} policy of {policy.parameter_count:,} parameters, trained for "
            f"{num_updates:,} updates on {policy.config.get('demos')} demonstrations"
            + "".join(f", {name}={value}" for name, value in changes.items())
        )
    elif not task.task_family.has_scripted_expert:
        raise ConfigError(
            f"task={task.name} has no scripted expert; add checkpoint=RUN to record the episodes "
            "of a trained policy."
        )
    else:
        spec = task.task_family.expert_spec(spec)
    if perturb is not None:
        spec = replace(spec, perturbation=_single_perturbation(perturb, spec))
        source += f", disturbed by {spec.perturbation}"
    attrs = dict(task.task_family.recording_attrs)
    attrs["source"] = (
        f"Successful episodes of at most {spec.max_steps} steps in {spec.env_id}: {source}."
    )
    return Demonstrator(policy, spec, attrs)


def _single_perturbation(words: list[str], spec: EnvSpec) -> Perturbation:
    _, *perturbations = parse_perturbations(words, known_perturbations(spec))
    if len(perturbations) != 1 or perturbations[0] is None:
        raise ConfigError(
            f"perturb={','.join(words)} names several perturbations; a recording has one at one "
            f"strength, such as perturb={str(perturbations[0]).replace(' ', '=')}."
        )
    return perturbations[0]


def record_demonstrations(
    demonstrator: Demonstrator,
    episodes: int,
    output: str | Path,
    *,
    workers: int = 8,
    write: Callable[[Path, Episodes], None] = write_episodes,
    on_progress: Callable[[int, int], None] | None = None,
) -> Episodes:
    """Write `episodes` successful episodes to `output` and return them.

    The arrays are `obs` (N, Do) float32 and `state` (N, S) float64 before each step, and `action`
    (N, A) float32 as executed. The content does not depend on interruptions. It depends on
    `workers` only through rounding in the policy's batched arithmetic. Seeds count up from 0 and
    stay below the seeds of evaluations. Finished episodes are stored in `<output>.partial`; the
    same call resumes from there.

    Args:
        demonstrator: the policy or expert, and its environment. Its attributes are stored in the
            file, together with `seeds`, the seed of each episode.
        episodes: number of successful episodes.
        output: a file or folder that must not exist.
        workers: number of processes that play episodes.
        write: function that writes the finished episodes to `output`; by default it writes an
            episode store.
        on_progress: called with (successes, attempts), at the start and after each episode.

    Raises:
        ConfigError: fewer than 1 episode is requested, or the policy rarely succeeds.
        OutputError: `output` exists, cannot be written or is in use by another process, or the
            interrupted recording beside it has other settings.
        RuntimeError: a worker failed.
    """
    output = Path(output)
    if episodes < 1:
        raise ConfigError(f"episodes must be at least 1, got {episodes}.")
    if output.exists():
        raise OutputError(f"output={output} exists; remove it or choose another output.")
    policy, spec, attrs = demonstrator.policy, demonstrator.spec, demonstrator.attrs
    partial = output.with_name(output.name + ".partial")
    with output_store(output, "output"):  # locked, because two processes would mix their episodes
        successes, seed = _resume(partial, attrs)
        notify = on_progress or (lambda successes, attempts: None)
        notify(successes, seed)
        if successes < episodes:
            with RolloutPool(spec, workers) as pool:
                while successes < episodes:
                    _check_success_rate(successes, seed)
                    wave = range(seed, min(seed + 2 * workers, EVALUATION_SEED))
                    counter = _EpisodeCounter(successes, seed, notify)
                    if policy is None:
                        results = pool.demonstrate(wave, on_episode=counter)
                    else:
                        results = pool.rollout(policy, wave, on_episode=counter, collect=True)
                    _append_successes(partial, results, attrs)
                    successes, seed = counter.successes, wave.stop
        stored = read_episodes(partial).select(range(episodes))
        seeds = stored.arrays["seed"][stored.ends - 1].tolist()
        arrays = {key: stored.arrays[key] for key in ROW_DTYPES}
        finished = Episodes(arrays, stored.ends, {**attrs, "seeds": seeds})
        write(output, finished)
        shutil.rmtree(partial)
        return finished


class _EpisodeCounter:
    """A counter of finished episodes and successes, updated after each episode of a wave."""

    def __init__(self, successes: int, attempts: int, notify: Callable[[int, int], None]):
        self.successes, self._attempts, self._notify = successes, attempts, notify

    def __call__(self, result: EpisodeResult) -> None:
        self.successes += result.success
        self._attempts += 1
        self._notify(self.successes, self._attempts)


def _resume(partial: Path, attrs: dict[str, Any]) -> tuple[int, int]:
    """Return the number of episodes recorded so far, and the next seed.

    The seeds are stored with the episodes, so that the two agree even after the process was killed.
    Failed episodes after the last success are repeated, with the same outcome.

    Raises:
        OutputError: the interrupted recording has other attributes.
    """
    if not partial.exists():
        return 0, 0
    stored = read_episodes(partial, keys=["seed"])
    if stored.attrs != json.loads(json.dumps(attrs)):
        raise OutputError(
            f"{partial} is an interrupted recording with other settings ({stored.attrs}); repeat "
            "its command to finish it, or remove it."
        )
    return len(stored), int(stored.arrays["seed"][-1]) + 1


def _append_successes(partial: Path, results: list[EpisodeResult], attrs: dict[str, Any]) -> None:
    successes = [result for result in results if result.success]
    if not successes:
        return
    lengths = [result.length for result in successes]
    rows = [result.rows or {} for result in successes]
    arrays = {
        key: np.concatenate([r[key] for r in rows]).astype(ROW_DTYPES[key]) for key in ROW_DTYPES
    }
    arrays["seed"] = np.repeat(np.array([r.seed for r in successes], dtype=np.int64), lengths)
    wave = Episodes(arrays, np.cumsum(lengths), attrs)
    if partial.exists():
        append_episodes(partial, wave)
    else:
        write_episodes(partial, wave)


def _check_success_rate(successes: int, attempts: int) -> None:
    """Raise ConfigError if the policy rarely succeeds or no seeds for demonstrations are left."""
    is_too_low = attempts >= PATIENCE and successes < MIN_SUCCESS_RATE * attempts
    if is_too_low or attempts >= EVALUATION_SEED:
        raise ConfigError(
            f"only {successes} of {attempts} episodes succeeded; record with a better policy."
        )
