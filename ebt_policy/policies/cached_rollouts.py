"""Cached rollouts: the episodes of a job are stored once they are played, and then reused.

A line of the cache (see `ResultCache`) holds the episodes of one `RolloutJob`:

    key          entry, run and condition (or task)
    checkpoint   hash of the loaded checkpoint, so that a run that was trained again is played again
    seeds        [first, last + 1] of the episodes
    videos       number of episodes that were recorded as videos
    episodes     one object for each episode, in the order of the seeds
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.rollout import RolloutPools
from ebt_policy.evaluation.progress import progress_bar
from ebt_policy.evaluation.result_cache import ResultCache, fingerprint
from ebt_policy.policies.base import Policy
from ebt_policy.policies.entries import PolicyEntry
from ebt_policy.policies.eval_config import EvalConfig, video_folder

console = Console()
EpisodeRows = list[dict[str, Any]]


class RolloutJob(NamedTuple):
    """The episodes of one training run under one condition.

    Attributes:
        entry: name of the entry that the run belongs to.
        condition: name of the perturbation or task, used in keys and folder names.
        run: folder of the training run.
        policy: the policy of the run.
        spec: environment of the episodes.
        record_video: whether the first episodes are recorded as videos.
    """

    entry: str
    condition: str
    run: Path
    policy: Policy
    spec: EnvSpec
    record_video: bool

    @property
    def key(self) -> str:
        """Key of the job's line in the cache."""
        return f"{self.entry} | {self.run.name} | {self.condition}"


def rollout_jobs(entry: PolicyEntry, condition: str, spec: EnvSpec) -> list[RolloutJob]:
    """Return a job for each training run of an entry.

    Only the first one records videos, if the environment renders frames.
    """
    renders = spec.renders
    return [
        RolloutJob(
            entry.name,
            condition,
            run,
            policy,
            spec,
            record_video=renders and run == entry.runs[0],
        )
        for run, policy in zip(entry.runs, entry.models, strict=True)
    ]


def play_jobs(
    jobs: Sequence[RolloutJob], config: EvalConfig, output: Path, cache: str, keys: Sequence[str]
) -> dict[str, EpisodeRows]:
    """Play the jobs that are not in the cache, and return key -> episodes of every job.

    Args:
        output: folder of the cache and of the videos, created if missing.
        cache: file name of the cache.
        keys: fields of `ebt_policy.envs.rollout.EpisodeResult` to store.

    Raises:
        ConfigError: ``config`` has no episodes, or its seeds are too large.
        OutputError: the cache cannot be written.
    """
    seeds = config.seeds
    fingerprints = {run: fingerprint(run) for run in {job.run for job in jobs}}
    identities = {
        job.key: {
            "key": job.key, "checkpoint": fingerprints[job.run],
            "seeds": [seeds.start, seeds.stop],
            "videos": config.videos if job.record_video else 0,
        }
        for job in jobs
    }  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    stored = ResultCache(output / cache, "episodes")
    before = {key: stored.get(identity) for key, identity in identities.items()}
    done: dict[str, EpisodeRows] = {
        key: rows for key, rows in before.items() if rows is not None and _videos_exist(rows)
    }
    if done:
        console.print(
            f"{len(done)} of {len(jobs)} jobs are in the cache; remove {output / cache} to play "
            "them again", markup=False, soft_wrap=True,
        )  # fmt: skip
    todo = [job for job in jobs if job.key not in done]
    with progress_bar() as bar, RolloutPools(config.processes) as pools:
        task = bar.add_task("", total=len(jobs) * len(seeds), completed=len(done) * len(seeds))
        for job in todo:
            name = f"{job.entry} {job.condition}"
            bar.update(task, description=name)
            results = pools.for_spec(job.spec).rollout(
                job.policy,
                seeds,
                videos=config.videos if job.record_video else 0,
                video_dir=video_folder(output, name),
                on_episode=lambda _: bar.advance(task),
            )
            rows = [asdict(result) for result in results]
            done[job.key] = [{key: row[key] for key in keys} for row in rows]
            stored.add(identities[job.key], done[job.key])
    return done


def _videos_exist(episodes: EpisodeRows) -> bool:
    return all(Path(row["video"]).is_file() for row in episodes if row.get("video"))
