"""Masked language models: visibility, loss, candidates, training and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from conftest import compose_config
from tiny_language_models import B, S, V, generators, tokens

from ebt_policy.energy.candidate_space import CandidateSpace, cross_entropy
from ebt_policy.energy.objectives import S1
from ebt_policy.errors import ConfigError
from ebt_policy.language.masked_lm import MaskedModel
from ebt_policy.language.model import build_language_model
from ebt_policy.language.tokenizer import make_tokenizer
from ebt_policy.train import train

NOISE = {"name": "s1", "steps": 2}
CORRUPTED = {"name": "s1", "steps": 2, "corrupted_init_fraction": 0.5}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "bert": ({"name": "bert"}, None),
    "scalar": ({"name": "masked_ebt", "energy": "scalar"}, NOISE),
    "product": ({"name": "masked_ebt", "energy": "product"}, {**NOISE, "init_std": 0.0}),
    "corrupted": ({"name": "masked_ebt", "energy": "scalar"}, CORRUPTED),
    "s2": ({"name": "masked_ebt", "energy": "scalar"}, {"name": "s2", "replay": 0}),
}


def build(kind: str, **inference: Any) -> MaskedModel:
    section, objective = KINDS[kind]
    model = {**section, "mask_ratio": 0.4}
    if objective is not None:
        model["inference"] = {"steps": 2, **inference}
    config = {
        "task": {"context": S},
        "size": {"width": 16, "heads": 2, "layers": 2},
        "model": model,
        "objective": objective,
    }
    torch.manual_seed(0)
    language_model: Any = build_language_model(config, make_tokenizer("char", ["abcdefghij"], 0))
    with torch.no_grad():
        for parameter in language_model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return language_model


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def test_masked_tokens_are_not_visible(kind):
    """Predictions depend on the visible tokens, but not on the masked ones."""
    model = build(kind)
    original = tokens()
    positions = model.mask_positions(original, generators())
    before = model.predict_masked(original, positions, generators())
    under = original.scatter(1, positions, (original.gather(1, positions) + 1) % V)
    torch.testing.assert_close(model.predict_masked(under, positions, generators()), before)
    visible = next(i for i in range(S) if i not in positions[0])
    changed = original.clone()
    changed[0, visible] = (changed[0, visible] + 1) % V
    after = model.predict_masked(changed, positions, generators())
    assert not torch.allclose(after[0], before[0]) and torch.allclose(after[1], before[1])


def test_mask_count_is_equal_and_positions_differ_by_row(kind):
    model = build(kind)
    positions = model.mask_positions(tokens(rows=20), None)
    assert positions.shape == (20, 3)  # 0.4 of 8, rounded
    assert all(len(set(row.tolist())) == 3 for row in positions)
    assert len({tuple(sorted(row.tolist())) for row in positions}) > 5


def test_loss_is_finite_and_reaches_every_parameter(kind):
    model = build(kind)
    loss, _ = model.loss({"tokens": tokens()})
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    # The head's bias shifts the energy, but does not change its gradient.
    assert loss.isfinite() and missing in ([], ["head.bias"])


def test_surprisal_covers_the_masked_tokens(kind):
    model = build(kind)
    surprisal = model.surprisal(tokens(), generators())
    positions = model.mask_positions(tokens(), again := generators())
    logits = model.predict_masked(tokens(), positions, again)
    want = -logits.log_softmax(-1).gather(-1, tokens().gather(1, positions)[..., None])[..., 0]
    torch.testing.assert_close(surprisal, want)


def test_best_of_several_candidates_is_predicted():
    model = build("scalar", num_candidates=4)
    positions = model.mask_positions(tokens(), generators())
    assert model.predict_masked(tokens(), positions, generators()).shape == (B, 3, V)


def test_candidates_start_from_noise_or_corrupted_targets():
    target = torch.randint(V, (400, 2))
    space = CandidateSpace(cross_entropy, num_classes=V)
    init = S1(space, corrupted_init_fraction=0.5, init_std=0.1).sample_noise(target)["init"]
    spread = init.std(-1)
    near_target = cross_entropy(init, target) < 0.7
    assert 0.15 < near_target.float().mean() < 0.35  # corrupted by less than half
    assert (spread < 0.2).float().mean() == pytest.approx(0.5, abs=0.06)  # start from noise
    clean = space.from_target(target)
    torch.testing.assert_close(
        clean.softmax(-1).gather(-1, target[..., None]).mean().item(), 1 / (1 + (V - 1) / V**2)
    )
    with pytest.raises(ValueError, match=r"objective\.corrupted"):
        S1(corrupted_init_fraction=1.5)


def test_invalid_options_are_refused():
    for change, message in (
        ({"model": {"mask_ratio": 0.0}}, "model.mask_ratio"),
        ({"model": {"energy": "kinetic"}}, "model.energy"),
        ({"objective": {"step_conditioned": True}}, "objective.step_conditioned"),
        ({"objective": {"name": "s2", "replay": 8}}, "objective.replay"),
    ):
        section, objective = KINDS["scalar"]
        model = {"mask_ratio": 0.4, **section, "inference": {}, **change.get("model", {})}
        objective_changes = change.get("objective", {})
        config = {
            "task": {"context": S},
            "size": {"width": 16, "heads": 2, "layers": 1},
            "model": model,
            "objective": objective_changes
            if "name" in objective_changes
            else {**objective, **objective_changes},  # type: ignore[dict-item]
        }
        with pytest.raises(ConfigError, match=message):
            build_language_model(config, make_tokenizer("char", ["ab"], 0))


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [("model=bert",), ("model=masked_ebt",)])
def test_training_logs_predictions_of_masked_tokens(overrides, tmp_path, monkeypatch):
    monkeypatch.setenv("EBT_POLICY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    run = tmp_path / "run"
    train(
        compose_config(
            "size.width=16", "size.heads=2", "size.layers=1", "task.tokenizer=char",
            "task.context=8", "device=cpu", "train.steps=4", "train.minutes=null",
            "train.batch_size=4", "train.warmup_steps=2", "train.compile=false",
            "train.eval_every=2", "evaluation.windows=8", f"task.path={tmp_path / 'mine.txt'}",
            f"run_dir={run}", *overrides, "task=text",
        )
    )  # fmt: skip
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (validation,) = [row for row in rows if "largest_share" in row]
    assert 0 < validation["true_largest_share"] <= 1 and 0 <= validation["accuracy"] <= 1
    (entry,) = json.loads((run / "evaluation/summary.json").read_text())["entries"]
    assert len(entry["habits"]["largest_share"]) == 1 and entry["perplexity"]["mean"] > 1
