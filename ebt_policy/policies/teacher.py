"""Training with a teacher: reflow, and verifiers of another policy's chunks.

**Reflow** (``objective=flow``, flow matching). A policy that is trained on demonstrations predicts
their mean in the first step, because noise and demonstrations are paired at random. A teacher maps
each noise sample to one chunk. A policy that is trained on these pairs has straight paths, so that
few steps are enough (Liu et al. 2023, "Flow Straight and Fast"). If the velocity is a gradient,
like that of an energy, the pairs approach those of optimal transport (Liu 2022, "Rectified Flow: A
Marginal Preserving Approach").

**Verifier** (``objective=contrastive objective.steps=0``). The energy learns to distinguish
demonstrations from chunks of the teacher. At the optimum it is the negative log-ratio of their
densities, so a low energy marks chunks that resemble demonstrations (Azadi et al. 2019,
"Discriminator Rejection Sampling").

Shapes: B batch, M candidates, T horizon, A action dimension.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ebt_policy.energy.objectives import Contrastive
from ebt_policy.errors import ConfigError
from ebt_policy.evaluation.entries import parse_checkpoint
from ebt_policy.policies.base import Policy
from ebt_policy.policies.chunk_constraints import NormalizedConstraints
from ebt_policy.policies.loading import load_policy


def attach_teacher(policy: Policy, checkpoint: str) -> None:
    """Train a policy with the chunks of a teacher.

    With reflow, training starts from the teacher's weights.

    Args:
        policy: an untrained policy.
        checkpoint: ``RUN[@steps=4,...]`` of a policy, for reflow of the same model, size and data.

    Raises:
        CheckpointError: the teacher cannot be loaded.
        ConfigError: the teacher has no transport, or does not fit the policy.
    """
    path, changes = parse_checkpoint(checkpoint)
    teacher = load_policy(path, policy.device)
    teacher.configure_inference(**changes)
    if not hasattr(teacher, "transport"):
        raise ConfigError(
            f"model.teacher={checkpoint} holds model={teacher.name}; use model=ebt or "
            "model=flow_matching."
        )
    if is_verifier(policy):
        if teacher.shape != policy.shape:
            raise ConfigError(
                f"model.teacher={checkpoint} has other observations, actions or horizons than this "
                f"run: {teacher.shape} instead of {policy.shape}; train both on the same task."
            )
        policy.set_teacher(partial(with_teacher_negatives, policy, teacher))
        return
    if teacher.name != policy.name or teacher.normalizer.to_json() != policy.normalizer.to_json():
        raise ConfigError(
            f"model.teacher={checkpoint} must have the model and the data of this run; train it "
            f"with model={policy.name}, the same task options and the same seed."
        )
    try:
        policy.load_state_dict(teacher.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"model.teacher={checkpoint} has another size than this run; use the same size and "
            "model options."
        ) from error
    policy.set_teacher(partial(with_teacher_targets, teacher))


def is_verifier(policy: Policy) -> bool:
    """Return whether a policy learns to tell demonstrations from samples."""
    return isinstance(getattr(policy, "objective", None), Contrastive)


def with_teacher_targets(teacher: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch whose "action" (B, T, A) is the teacher's chunk for the batch's noise.

    Args:
        teacher: a policy with ``transport``.
        batch: normalised batch with "noise", whose "normal" noise is moved.
    """
    normal = batch["noise"]["normal"]
    with torch.no_grad():
        features = teacher.observation_features(batch)
        noise = normal.view(len(normal), 1, *normal.shape[-2:])
        return {**batch, "action": teacher.transport(features, noise)[:, 0]}


def with_teacher_negatives(policy: Policy, teacher: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch whose noise "init" (B, M, T, A) are chunks of the teacher.

    Args:
        policy: the verifier, whose network units the batch has.
        teacher: a policy with ``transport``, possibly with other units.
        batch: normalised batch with "noise", whose initial candidates are moved.
    """
    noise = batch["noise"]
    with torch.no_grad():
        obs = {**batch, "obs": policy.normalizer.unnormalize("obs", batch["obs"])}
        chunks = transport_in_env_units(teacher, obs, noise["init"])
        return {**batch, "noise": {**noise, "init": policy.normalize_actions(obs["obs"], chunks)}}


def transport_in_env_units(policy: Any, obs: dict[str, Any], noise: Tensor) -> Tensor:
    """Return a policy's chunks (B, M, T, A) in env units for noise of the same shape."""
    x = policy.transport(policy.encode_observation(obs), noise)
    chunks = policy.constrain(x, NormalizedConstraints())
    return policy.unnormalize_actions(obs["obs"], chunks)
