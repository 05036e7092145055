"""Areas under the ROC curve, calibration and reliability."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from ebt_policy.evaluation.detection import Calibration, Samples, auroc, reliability


def samples(n=200, shift=1.0, seed=0, per_episode=1) -> Samples:
    rng = np.random.default_rng(seed)
    episode = np.arange(n) // per_episode
    happened = rng.uniform(size=n) < 0.4
    return Samples(rng.normal(size=n) + shift * happened, happened, episode)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: len({happened for _, happened in rows}) == 2
    )
)
def test_auroc_equals_mann_whitney_with_ties(rows):
    signal, happened = (np.array(column) for column in zip(*rows, strict=True))
    area = auroc([Samples(signal.astype(float), happened, np.arange(len(rows)))])
    u = mannwhitneyu(signal[happened], signal[~happened]).statistic
    assert area["mean"] == pytest.approx(u / (happened.sum() * (~happened).sum()))
    lo, hi = area["ci95"]
    assert 0 <= lo <= hi <= 1


def test_interval_accounts_for_correlated_chunks():
    alone = samples(400)
    copied = Samples(*(np.repeat(part, 10) for part in alone[:2]), np.repeat(alone.episode, 10))
    assert auroc([copied])["ci95"] == pytest.approx(auroc([alone])["ci95"], abs=1e-9)
    ignored = Samples(copied.signal, copied.label, np.arange(4000))
    assert np.ptp(auroc([ignored])["ci95"]) < 0.5 * np.ptp(auroc([copied])["ci95"])


def test_runs_are_averaged_and_their_spread_widens_the_interval():
    good, bad = samples(shift=3), samples(shift=0, seed=1)
    average = auroc([good, bad])
    assert average["mean"] == pytest.approx((auroc([good])["mean"] + auroc([bad])["mean"]) / 2)
    assert np.ptp(average["ci95"]) > 0.3
    unlabelled = samples()._replace(label=np.zeros(200, bool))
    assert auroc([good, unlabelled]) == auroc([good])


def test_undefined_detection_metrics_are_refused():
    with pytest.raises(ValueError, match="both positive and negative labels"):
        auroc([samples()._replace(label=np.ones(200, bool))])
    with pytest.raises(ValueError, match="NaN"):
        auroc([samples()._replace(signal=np.full(200, np.nan))])


def test_calibrated_probabilities_match_frequencies():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=4000)
    chance = 1 / (1 + np.exp(-2 * signal))
    happened = rng.uniform(size=4000) < chance
    calibrated = Calibration(signal[:2000], happened[:2000])(signal[2000:])
    assert np.abs(calibrated - chance[2000:]).mean() < 0.05
    assert (np.diff(calibrated[np.argsort(signal[2000:])]) >= 0).all()
    result = reliability(calibrated, happened[2000:])
    assert result["calibration_error"] < 0.04
    assert result["brier"] < 0.8 * result["brier_of_mean"]
    assert sum(row["n"] for row in result["bins"]) == 2000
    raw = reliability(np.full(100, 0.9), np.arange(100) < 30)
    assert raw["calibration_error"] == pytest.approx((0.1 + 0.4 + 3 * 0.9) / 5)
