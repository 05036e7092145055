"""Record demonstrations with a trained policy: successful episodes of seeded rollouts.

    python -m envs.record task=push_t checkpoint=RUN episodes=250 output=demos.zarr.zip

Settings: task, checkpoint, output, episodes (250), workers (8). Seeds count up from 0 and stay
below those of evaluations. What is finished waits in `<output>.partial`, so that the same command
goes on after a kill.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ebt_policy.data.episodes import (
    Episodes,
    append_episodes,
    read_episodes,
    write_episodes,
)
from ebt_policy.data.push_t import ATTRS
from envs.rollout import EpisodeResult, Policy, RolloutPool
from envs.spec import EVALUATION_SEED, EnvSpec

PATIENCE = 100  # attempts before a success rate below MIN_SUCCESS_RATE is called hopeless
MIN_SUCCESS_RATE = 0.02


@dataclass(frozen=True)
class Settings:
    """The command line."""

    checkpoint: str
    output: str
    task: str = "push_t"
    episodes: int = 250
    workers: int = 8


def record(
    policy: Policy,
    spec: EnvSpec,
    episodes: int,
    output: str | Path,
    *,
    attrs: dict[str, Any],
    workers: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
) -> Episodes:
    """Write `episodes` successful episodes of `policy` to `output` and return them.

    The arrays are `state` (N, S) float32, `info["state"]` before each step, and `action` (N, A)
    float32, as executed. The content depends on the policy alone: not on interruptions, and on
    `workers` only through the rounding of the policy's batched arithmetic.

    Args:
        output: a folder, or a single file when it ends in .zip; it must not exist.
        attrs: JSON attributes of the file; `seeds`, the seed of each episode, is added.
        on_progress: called with (successes, attempts), at the start and after each episode.

    Raises:
        FileExistsError: `output` exists.
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
    kept, seed = _resume(partial, attrs)
    notify = on_progress or (lambda successes, attempts: None)
    notify(kept, seed)
    if kept < episodes:
        with RolloutPool(spec, workers) as pool:
            while kept < episodes:
                _check_hope(kept, seed)
                wave = range(seed, min(seed + 2 * workers, EVALUATION_SEED))
                counter = _Counter(kept, seed, notify)
                results = pool.rollout(policy, wave, on_episode=counter, collect=True)
                _keep(partial, results, attrs)
                kept, seed = counter.successes, wave.stop
    stored = read_episodes(partial).select(range(episodes))
    seeds = stored.arrays["seed"][stored.ends - 1].tolist()
    arrays = {key: stored.arrays[key] for key in ("state", "action")}
    finished = Episodes(arrays, stored.ends, {**attrs, "seeds": seeds})
    write_episodes(output, finished)
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
    arrays = {
        "state": np.concatenate([np.asarray(r.states, dtype=np.float32) for r in good]),
        "action": np.concatenate([np.asarray(r.actions, dtype=np.float32) for r in good]),
        "seed": np.repeat(np.array([r.seed for r in good], dtype=np.int64), lengths),
    }
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


def parse(arguments: Sequence[str]) -> Settings:
    """Read key=value arguments.

    Raises:
        ValueError: an argument of another form, an unknown, repeated or missing key, a bad value.
    """
    known = {f.name: f for f in fields(Settings)}
    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not value:
            raise ValueError(f"arguments have the form key=value, got {argument!r}")
        if key not in known:
            raise ValueError(f"unknown setting {key!r}; the settings are {', '.join(known)}")
        if key in given:
            raise ValueError(f"{key} is given twice")
        given[key] = _positive(key, value) if known[key].type == "int" else value
    missing = [n for n, f in known.items() if f.default is MISSING and n not in given]
    if missing:
        raise ValueError(f"missing settings: {', '.join(f'{name}=...' for name in missing)}")
    settings = Settings(**given)
    return settings


def _positive(key: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{key} must be a whole number above 0, got {value!r}")
    return int(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from ebt_policy.models import load_policy
    from ebt_policy.tasks import Task

    columns = ("recording", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        settings = parse(sys.argv[1:] if arguments is None else arguments)
        policy = load_policy(settings.checkpoint)
        task = Task.of(policy.config)
        if task.name != settings.task:
            raise ValueError(f"{settings.checkpoint} is a policy for task={task.name}")
        spec = task.env_spec()
        trained = policy.config.get("trained", {}).get("steps", 0)
        source = (
            f"Successful rollouts in {spec.env_id} of a {policy.name} policy of "
            f"{policy.parameter_count:,} parameters, trained for {trained:,} updates on "
            f"{policy.config.get('demos')} demonstrations."
        )
        with Progress(*columns, "{task.fields[rate]}") as progress:
            bar = progress.add_task("", total=settings.episodes, rate="")

            def show(successes: int, attempts: int) -> None:
                rate = f"{successes} successes in {attempts} attempts"
                progress.update(bar, completed=min(successes, settings.episodes), rate=rate)

            finished = record(
                policy,
                spec,
                settings.episodes,
                settings.output,
                attrs={**ATTRS, "source": source},
                workers=settings.workers,
                on_progress=show,
            )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{settings.output}: {len(finished)} episodes, {finished.ends[-1]} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
