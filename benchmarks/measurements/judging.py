"""Selection of chunks that another policy proposed: an energy against its rivals.

A policy proposes chunks. A judge, which is another network of the same training seed or a vote of
the proposals, selects the one to execute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from benchmarks.device import DEVICE
from benchmarks.speed import interleaved_timing
from benchmarks.study import StudyContext
from ebt_policy.energy.candidate_space import corrupt
from ebt_policy.energy.sampling import Generators, draw_normal
from ebt_policy.energy.selection import KERNEL_WIDTH, VOTES, line_integral, vote
from ebt_policy.envs.rollout import RolloutPool
from ebt_policy.evaluation.result_cache import ResultCache, fingerprint
from ebt_policy.evaluation.statistics import percentiles
from ebt_policy.policies import Chunk, EnergyPolicy, FlowMatchingPolicy
from ebt_policy.policies.entries import load_policy_entries
from ebt_policy.policies.metrics import METRICS, entry_summary, pair_entries
from ebt_policy.policies.teacher import transport_in_env_units

PROPOSALS = 16  # proposed chunks, and samples of the judge's own density
NOISES = 4  # noise samples of a denoising error: as many evaluations as a line integral has nodes
TIMING_ROUNDS = 100
Judge = Callable[[dict[str, Tensor], Tensor, Generators], Tensor]
"""Maps an observation, chunks (B, M, T, A) in env units and generators to scores (B, M).

The lowest score is selected.
"""


def sample_chunks(policy: Any, obs: dict[str, Tensor], count: int, generator: Generators) -> Tensor:
    """Return samples (B, count, T, A) of a policy in env units."""
    state, shape = obs["obs"], policy.shape
    empty = state.new_empty(len(state), count, shape.horizon, shape.action_dim)
    return transport_in_env_units(policy, obs, draw_normal(empty, generator))


def energy_judge(policy: EnergyPolicy) -> Judge:
    """Return the judge that scores by the energy."""
    return lambda obs, chunks, _: policy.energies(obs, chunks)


def line_integral_judge(policy: FlowMatchingPolicy) -> Judge:
    """Return the integral of the field from the mean of the chunks to each chunk."""

    def score(obs: dict[str, Tensor], chunks: Tensor, _: Generators) -> Tensor:
        context = policy.net.encode(policy.encode_observation(obs))
        field = partial(policy.score_field, context, level=policy.inference.scoring_level)
        x = policy.normalize_actions(obs["obs"], chunks)
        return line_integral(field, x, chunks.shape[1])

    return score


def sample_density_judge(policy: FlowMatchingPolicy) -> Judge:
    """Return the negative log density of kernels at the policy's own samples."""

    def score(obs: dict[str, Tensor], chunks: Tensor, generator: Generators) -> Tensor:
        own = sample_chunks(policy, obs, PROPOSALS, generator).flatten(2)
        between = torch.cdist(own, own).flatten(1)
        width = KERNEL_WIDTH * between.median(-1).values.clamp(min=1e-6)
        square = torch.cdist(chunks.flatten(2), own).square()
        return -torch.logsumexp(-square / (2 * width[:, None, None].square()), dim=-1)

    return score


def denoising_error_judge(policy: FlowMatchingPolicy) -> Judge:
    """Return the error of the velocity at corrupted chunks, with the same noise for all chunks.

    Up to a constant, the mean error over all noise and levels, with suitable weights, bounds the
    negative log-likelihood (Ho et al. 2020, "Denoising Diffusion Probabilistic Models").
    """

    def score(obs: dict[str, Tensor], chunks: Tensor, generator: Generators) -> Tensor:
        context = policy.net.encode(policy.encode_observation(obs))
        x = policy.normalize_actions(obs["obs"], chunks)
        noise = draw_normal(x.new_empty(len(x), NOISES, *x.shape[2:]), generator)
        # Each chunk with each noise, (B, M * NOISES, T, A).
        x = x.repeat_interleave(NOISES, dim=1)
        noise = noise.repeat(1, chunks.shape[1], 1, 1)
        level = x.new_full(x.shape[:2], policy.inference.scoring_level)
        error = policy.net(context, corrupt(x, noise, level), level) - (x - noise)
        return error.square().flatten(2).sum(-1).unflatten(1, (-1, NOISES)).mean(-1)

    return score


def vote_judge(rule: str) -> Callable[[Any], Judge]:
    """Return the maker of a judge that scores by a vote of the chunks, for any policy."""
    return lambda _: lambda obs, chunks, _: vote(rule, chunks, chunks.shape[1])


class JudgedPolicy:
    """A policy that executes the chunk that a judge selects among another policy's proposals."""

    def __init__(self, proposer: Any, judge: Judge) -> None:
        self._proposer, self._judge = proposer, judge

    @torch.no_grad()
    def predict_chunk(self, obs: dict[str, Tensor], *, generator: Generators = None) -> Chunk:
        chunks = sample_chunks(self._proposer, obs, PROPOSALS, generator)
        best = self._judge(obs, chunks, generator).argmin(1)
        rows = torch.arange(len(best))
        return Chunk(chunks[rows, best], torch.ones(len(best), dtype=torch.long))


def own_judge(policy: EnergyPolicy | FlowMatchingPolicy) -> Judge:
    """Return the judge that uses a policy's own density: its energy, or its line integral."""
    return energy_judge(policy) if isinstance(policy, EnergyPolicy) else line_integral_judge(policy)


JUDGES: dict[str, tuple[int, Callable[[Any], Judge]]] = {
    "energy": (1, energy_judge),
    "verifier": (3, energy_judge),
    "flow matching, line integral": (2, line_integral_judge),
    "flow matching, denoising error": (2, denoising_error_judge),
    f"flow matching, density of {PROPOSALS} samples": (2, sample_density_judge),
    **{f"{rule} of the proposals": (0, vote_judge(rule)) for rule in VOTES},
}
"""Name -> position of the judge's policy among the entries of the part, and judge of a policy."""


def judging(context: StudyContext) -> dict[str, Any]:
    """Play episodes with every judge and training seed.

    Entries of the part: the policy that proposes, the energy policy, flow matching, and a verifier
    that was trained to tell demonstrations from the proposals. The study has the options
    ``episodes`` and ``first_seed``.
    """
    options = context.options
    seeds = range(options.first_seed, options.first_seed + options.episodes)
    # The proposer may be one of the judges, too.
    entries = [load_policy_entries([text], DEVICE)[0] for text in context.checkpoints()]
    proposer = entries[0]
    cache = ResultCache(context.output / "judged.jsonl", "episodes")
    rows: dict[str, list[dict[str, Any]]] = {}
    for run, policy in enumerate(proposer.models):
        prints = [fingerprint(entry.runs[run]) for entry in entries]
        with RolloutPool(proposer.env_spec, workers=25) as pool:
            for name, (position, judge_of) in track(JUDGES.items(), f"training seed {run}"):
                judge = entries[position].models[run]
                identity = {
                    "key": f"{name} | {run}", "checkpoints": [prints[0], prints[position]],
                    "inference": asdict(policy.inference),
                    "judge_inference": asdict(judge.inference),
                    "seeds": [seeds.start, seeds.stop],
                }  # fmt: skip
                judged = JudgedPolicy(policy, judge_of(judge))
                play = partial(_play, pool, judged, seeds)
                played = cache.get_or_compute(identity, play)
                train_seed = policy.config.get("seed")
                rows.setdefault(name, []).extend(row | {"train_seed": train_seed} for row in played)
    summaries = [
        (entry_summary(name, proposer.metadata(), episodes, context.command), episodes)
        for name, episodes in rows.items()
    ]
    return {
        "command": context.command,
        "proposals": PROPOSALS,
        "episodes": options.episodes,
        "entries": [
            {key: summary[key] for key in ("name", "episodes", *METRICS)}
            for summary, _ in summaries
        ],
        # Run i of each judge selects among the proposals of run i of the same policy.
        "paired": pair_entries(summaries, ["proposer"] * len(summaries)),
        "judging_ms": judging_latency([entry.model for entry in entries], proposer.env_spec),
    }


def _play(pool: RolloutPool, policy: JudgedPolicy, seeds: range) -> list[dict[str, Any]]:
    return [asdict(result) | {"chunks": []} for result in pool.rollout(policy, seeds)]


@torch.no_grad()
def judging_latency(policies: list[Any], spec: Any) -> dict[str, float]:
    """Return the median time of each judge for one observation, ms, on one thread."""
    env = spec.make()
    first, _ = env.reset(seed=0)
    env.close()
    obs = {"obs": torch.as_tensor(first).float().expand(1, spec.n_obs_steps, -1)}
    chunks = sample_chunks(policies[0], obs, PROPOSALS, None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    jobs = {
        name: partial(judge_of(policies[position]), obs, chunks, None)
        for name, (position, judge_of) in JUDGES.items()
    }
    times = interleaved_timing(jobs, TIMING_ROUNDS)
    torch.set_num_threads(threads)
    return {name: percentiles(values)["p50"] for name, values in times.items()}
