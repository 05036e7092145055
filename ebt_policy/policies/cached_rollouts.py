"""Episodes of long evaluations: what was played is stored at once and never played again.

A piece is one training run, evaluated one way. Its line in a `ResultCache` holds

    key          which entry, run and condition (or task)
    checkpoint   a hash of what was loaded: a run that was trained anew is played anew
    seeds        [first, last + 1] of the episodes
    videos       how many of them were filmed
    episodes     one object an episode, in the order of their seeds
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.rollout import RolloutPools
from ebt_policy.evaluation.contestants import EvalEntry
from ebt_policy.evaluation.progress import progress_bar
from ebt_policy.evaluation.result_cache import ResultCache, fingerprint
from ebt_policy.policies.base import Policy
from ebt_policy.policies.eval_config import EvalConfig, video_folder

console = Console()
Episodes = list[dict[str, Any]]


class RolloutJob(NamedTuple):
    """A training run to be played one way.

    Attributes:
        entry: whose run it is.
        where: the condition or task.
        filmed: whether some of its episodes are.
    """

    entry: str
    where: str
    run: Path
    policy: Policy
    spec: EnvSpec
    filmed: bool

    @property
    def key(self) -> str:
        """Of its line in the log."""
        return f"{self.entry} | {self.run.name} | {self.where}"


def pieces_of(one: EvalEntry, where: str, spec: EnvSpec) -> list[RolloutJob]:
    """A piece for each training run of a contestant, the first of them filmed."""
    return [
        RolloutJob(one.name, where, run, policy, spec, filmed=run == one.runs[0])
        for run, policy in zip(one.runs, one.policies, strict=True)
    ]


def play_pieces(
    pieces: Sequence[RolloutJob], protocol: EvalConfig, output: Path, log: str, keys: Sequence[str]
) -> dict[str, Episodes]:
    """Play the pieces that the log does not have yet; key -> episodes of every piece.

    Args:
        output: folder of the log and of the videos, made when missing.
        log: name of the log.
        keys: what is kept of an `ebt_policy.envs.rollout.EpisodeResult`.

    Raises:
        ConfigError: no episodes are to be played.
        OSError: the log cannot be written.
    """
    seeds = protocol.seeds
    prints = {run: fingerprint(run) for run in {piece.run for piece in pieces}}
    window = [seeds.start, seeds.stop]
    identities = {
        piece.key: {
            "key": piece.key, "checkpoint": prints[piece.run], "seeds": window,
            "videos": protocol.videos if piece.filmed else 0,
        }
        for piece in pieces
    }  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    kept = ResultCache(output / log, "episodes")
    before = {key: kept.get(identity) for key, identity in identities.items()}
    done: dict[str, Episodes] = {
        key: found for key, found in before.items() if found is not None and _videos_exist(found)
    }
    if done:
        console.print(
            f"{len(done)} of {len(pieces)} were played before; remove {output / log} to play them "
            "again", markup=False, soft_wrap=True,
        )  # fmt: skip
    todo = [piece for piece in pieces if piece.key not in done]
    with progress_bar() as bar, RolloutPools(protocol.processes) as pools:
        task = bar.add_task("", total=len(pieces) * len(seeds), completed=len(done) * len(seeds))
        for piece in todo:
            name = f"{piece.entry} {piece.where}"
            bar.update(task, description=name)
            results = pools.for_spec(piece.spec).rollout(
                piece.policy,
                seeds,
                videos=protocol.videos if piece.filmed else 0,
                video_dir=video_folder(output, name),
                on_episode=lambda _: bar.advance(task),
            )
            rows = [asdict(result) for result in results]
            done[piece.key] = [{key: row[key] for key in keys} for row in rows]
            kept.add(identities[piece.key], done[piece.key])
    return done


def _videos_exist(episodes: Episodes) -> bool:
    return all(Path(row["video"]).is_file() for row in episodes if row.get("video"))
