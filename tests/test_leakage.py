"""No language model sees the token that it predicts.

Four checks: perturbed tokens, gradients, prediction of one position at a time, and training on
random tokens. Each check is shown to detect a leaking mask.

Shapes: B batch, S context, M candidates per position, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_language_models import KINDS, STEPS, B, S, V, build, generators, tokens

from ebt_policy.energy.attention import Attention
from ebt_policy.energy.causal import EncodedContext
from ebt_policy.language.model import EnergyLanguageModel, LanguageModel

WITH_CANDIDATES = [kind for kind in KINDS if kind != "transformer_pp"]
# "ebt s2" draws the Langevin noise of all positions together.
NOISELESS = [kind for kind in KINDS if kind != "ebt s2"]


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def outputs_of_every_step(model: LanguageModel, sequence: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return all outputs of a model for the positions (B, S) of a sequence, after every step."""
    with torch.no_grad():
        observed = model.observe(sequence)
        if not isinstance(model, EnergyLanguageModel):
            return {"logits": model.predict(observed)}
        result = model.descend(observed, generators())
        return {
            **{f"candidate {k}": candidate for k, candidate in enumerate(result.path)},
            "energies": result.energies.movedim(0, -1),
            "norms": result.grad_norms.movedim(0, -1),
        }


def leaks_backwards(model: LanguageModel) -> list[str]:
    """Return the outputs that change at positions before a replaced token."""
    before, moved, leaks = outputs_of_every_step(model, tokens()), tokens(), []
    for position in range(1, S):
        moved = tokens()
        moved[:, position] = (moved[:, position] + 1 + torch.arange(B)) % V
        after = outputs_of_every_step(model, moved)
        for name, value in before.items():
            if not torch.allclose(after[name][:, :position], value[:, :position], rtol=1e-9):
                leaks.append(f"{name} before {position}")
    return leaks


def leaks_between_candidates(model: EnergyLanguageModel, num_candidates: int = 1) -> bool:
    """Return whether a candidate's energy or update depends on another candidate."""
    observed = model.observe(tokens())
    candidates = torch.randn(B, S * num_candidates, 16).double().requires_grad_()
    level = (
        torch.full((B, S * num_candidates), 0.5).double()
        if model.objective.level_conditioned
        else None
    )
    energy: Any = model.energy(observed)
    energies = (
        energy.field(candidates, level).sum(-1)
        if model.name == "refiner"
        else energy(candidates, level)
    )
    for unit in range(S * num_candidates):
        (slope,) = torch.autograd.grad(energies[:, unit].sum(), candidates, retain_graph=True)
        assert slope[:, unit].any()
        if slope[:, torch.arange(S * num_candidates) != unit].any():
            return True
    return False


def equals_sequential_prediction(model: LanguageModel) -> bool:
    """Return whether predicting one position at a time equals predicting all in parallel."""
    parallel = outputs_of_every_step(model, tokens())
    for position in range(S):
        with torch.no_grad():
            observed = model.observe(tokens()[:, : position + 1])
            alone = EncodedContext(observed.keys_values, observed.last[:, -1:])
            if not isinstance(model, EnergyLanguageModel):
                outputs = {"logits": model.predict(alone)}
            else:
                # Same initial candidate as in the parallel prediction; no Langevin noise.
                descent = replace(model.objective.descent(STEPS), noise=None)
                init = parallel["candidate 0"][:, position : position + 1]
                path = descent(model.energy(alone), init).path
                outputs = {f"candidate {k}": candidate for k, candidate in enumerate(path)}
        for name, value in outputs.items():
            want = parallel[name][:, position : position + 1]
            if not torch.allclose(value, want, rtol=1e-6, atol=1e-9):
                return False
    return True


def test_predictions_do_not_depend_on_later_tokens(kind):
    assert leaks_backwards(build(kind)) == []


@pytest.mark.parametrize("kind", WITH_CANDIDATES)
@pytest.mark.parametrize("num_candidates", [1, 3])
def test_candidates_are_independent_of_each_other(kind, num_candidates):
    model = build(kind)
    assert isinstance(model, EnergyLanguageModel) and not leaks_between_candidates(
        model, num_candidates
    )


@pytest.mark.parametrize("kind", NOISELESS)
def test_parallel_prediction_equals_sequential(kind):
    assert equals_sequential_prediction(build(kind))


def test_predictions_depend_on_all_earlier_tokens(kind):
    """The reverse check: no earlier token is hidden."""
    model = build(kind)
    last = outputs_of_every_step(model, tokens())
    for position in range(S):
        moved = tokens()
        moved[:, position] = (moved[:, position] + 1) % V
        for name, value in outputs_of_every_step(model, moved).items():
            if name != "candidate 0" and (kind, name) != ("refiner", "energies"):  # no energy
                same = torch.allclose(value[:, -1], last[name][:, -1], atol=1e-6)
                assert not same, (name, position)


# -- leaky masks ----------------------------------------------------------------------------------


def leak_next_token(monkeypatch):
    """Let candidates also attend to the token to predict."""
    independent_queries = Attention.independent_queries

    def leaky(self, x, turns, past, hidden):
        if hidden is not None:
            hidden = hidden.clone()
            hidden[:, 1:] = hidden[:, :-1]
            hidden[:, 0] = False
        return independent_queries(self, x, turns, past, hidden)

    monkeypatch.setattr(Attention, "independent_queries", leaky)


def leak_between_candidates(monkeypatch):
    """Let candidates see the mean of all candidates."""
    independent_queries = Attention.independent_queries

    def leaky(self, x, turns, past, hidden):
        return independent_queries(self, x + 0.1 * x.mean(dim=1, keepdim=True), turns, past, hidden)

    monkeypatch.setattr(Attention, "independent_queries", leaky)


def leak_in_observed_stream(monkeypatch):
    """Make the observed stream not causal."""
    self_attention = Attention.self_attention

    def leaky(self, x, turns, past=None, causal=True):
        return self_attention(self, x + 0.1 * x.mean(dim=1, keepdim=True), turns, past, causal)

    monkeypatch.setattr(Attention, "self_attention", leaky)


@pytest.mark.parametrize("kind", ["ebt", "refiner"])
def test_checks_detect_candidates_that_see_the_next_token(kind, monkeypatch):
    leak_next_token(monkeypatch)
    assert leaks_backwards(build(kind)) and not equals_sequential_prediction(build(kind))


@pytest.mark.parametrize("kind", ["ebt", "refiner"])
def test_checks_detect_candidates_that_see_each_other(kind, monkeypatch):
    leak_between_candidates(monkeypatch)
    model = build(kind)
    assert isinstance(model, EnergyLanguageModel) and leaks_between_candidates(model)
    assert not equals_sequential_prediction(model)


def test_checks_detect_an_observed_stream_that_is_not_causal(kind, monkeypatch):
    leak_in_observed_stream(monkeypatch)
    assert leaks_backwards(build(kind))
    if kind != "ebt s2":
        assert not equals_sequential_prediction(build(kind))


# -- noise ----------------------------------------------------------------------------------------


def excess_surprisal_on_noise(kind: str) -> float:
    """Return the held-out surprisal (nats) minus ln V after training on uniform random tokens."""
    torch.manual_seed(0)
    model = build(kind).float()
    if isinstance(model, EnergyLanguageModel):
        with torch.no_grad():
            for parameter in model.objective.parameters():
                parameter.fill_(0.3)
    groups = model.parameter_groups(3e-3, 0.0)
    optimizer = torch.optim.AdamW(groups)
    for _ in range(150):
        batch = {"tokens": torch.randint(V, (32, S + 1))}
        loss, _ = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        return float(model.surprisal(torch.randint(V, (512, S + 1))).mean()) - math.log(V)


@pytest.mark.slow
def test_random_tokens_cannot_be_predicted(kind):
    assert excess_surprisal_on_noise(kind) > -0.02  # mean of 3,584 positions


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ebt", "refiner"])
def test_leaky_model_predicts_random_tokens(kind, monkeypatch):
    leak_next_token(monkeypatch)
    assert excess_surprisal_on_noise(kind) < -0.2
