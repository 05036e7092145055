"""Autoregressive language models: loss, surprisal, generation and candidates."""

from __future__ import annotations

import pytest
import torch
from tiny_language_models import KINDS, B, V, build, generators, tokens

from ebt_policy.errors import ConfigError
from ebt_policy.language.model import EnergyLanguageModel, negative_entropy
from ebt_policy.language.tokenizer import make_tokenizer


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def test_loss_is_finite_and_reaches_every_parameter(kind):
    model = build(kind).float()
    loss, _ = model.loss({"tokens": torch.randint(V, (3, 8))})
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("num_candidates", [1, 3])
def test_surprisal_is_the_negative_log_probability(kind, num_candidates):
    model = build(kind)
    if isinstance(model, EnergyLanguageModel) and model.has_energy and model.has_random_init:
        model.configure_inference(num_candidates=num_candidates)
    logits = model.predict(model.observe(tokens()), generators())
    assert logits.shape == (B, 7, V) and not logits.requires_grad
    surprisal = model.surprisal(tokens(), generators())
    want = -model.predict(model.observe(tokens()[:, :-1]), generators()).log_softmax(-1)
    torch.testing.assert_close(surprisal, want.gather(2, tokens()[:, 1:, None])[..., 0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_generation_equals_uncached(kind, temperature):
    """Tokens are generated one at a time, past the end of the context."""
    model = build(kind)
    options = {"temperature": temperature, "top_k": 5}
    if isinstance(model, EnergyLanguageModel):
        model.objective.init_std = 0.0  # random starts would need equal noise in both cases
        if kind == "ebt s2":
            model.objective.noise = None
    texts = [
        "".join(model.generate("abc", 12, **options, cached=cached, generator=g))
        for cached, g in zip((True, False), generators(), strict=True)
        if g.manual_seed(3)
    ]
    assert len(texts[0]) == 12 and texts[0] == texts[1]


def test_empty_prompt_is_refused(kind):
    with pytest.raises(ConfigError, match="must not be empty"):
        next(build(kind).generate("", 3))


def test_multibyte_characters_are_emitted_complete():
    tokenizer = make_tokenizer("bpe", ["plain"], 257)
    model = build("transformer_pp")
    model.tokenizer = tokenizer
    ids = iter(tokenizer.encode("日本é!").ids)
    model.predict = lambda observed, generator=None: torch.nn.functional.one_hot(  # type: ignore
        torch.tensor([[next(ids)]]), 257
    ).float()
    model.embedding = torch.nn.Embedding(257, 16, dtype=torch.float64)
    assert list(model.generate("a", 9, temperature=0.0)) == ["日", "本", "é", "!"]


def free_energy(model, observed, logits):
    return model.energy(observed)(model.embed(logits), None) + negative_entropy(logits)


def test_lowest_energy_candidate_is_selected():
    single, best_of_4 = build("ebt"), build("ebt", num_candidates=4)
    assert isinstance(single, EnergyLanguageModel) and isinstance(best_of_4, EnergyLanguageModel)
    observed = best_of_4.observe(tokens())
    result = best_of_4.descend(observed, generators())
    alone = single.descend(single.observe(tokens()), generators())
    assert result.candidate.shape == alone.candidate.shape == (B, 7, V)
    energies = free_energy(best_of_4, observed, result.candidate)
    torch.testing.assert_close(energies, result.energies[-1])
    configured = build("ebt")
    configured.configure_inference(num_candidates=4)
    torch.testing.assert_close(configured.predict(observed, generators()), result.candidate)


def test_rejecting_increases_never_raises_the_energy():
    plain, careful = build("ebt", steps=6), build("ebt", steps=6, reject_energy_increase=True)
    assert isinstance(plain, EnergyLanguageModel) and isinstance(careful, EnergyLanguageModel)
    with torch.no_grad():
        for model in (plain, careful):  # steps so large that some energies rise
            model.objective.step_size.fill_(20.0)  # type: ignore[union-attr]
        up = plain.descend(plain.observe(tokens()), generators()).energies.diff(dim=0) > 1e-9
        down = careful.descend(careful.observe(tokens()), generators())
    assert up.any() and (down.energies.diff(dim=0) <= 1e-9).all()
    energy = free_energy(careful, careful.observe(tokens()), down.candidate)
    torch.testing.assert_close(energy, down.energies[-1])
    assert (down.steps_used <= 6).all() and (down.steps_used < 6).any()


def test_refiner_has_no_energy_to_select_by():
    with pytest.raises(ConfigError, match="no energy to select"):
        build("refiner", num_candidates=2)
    with pytest.raises(ConfigError, match="no energy to select"):
        build("refiner").configure_inference(reject_energy_increase=True)
