"""Figures: SVG output without changes of global state, and errors for invalid data."""

from __future__ import annotations

import re

import matplotlib as mpl
import numpy as np
import pytest
from policy_results import all_figures

from ebt_policy.evaluation import figure_style, figures
from ebt_policy.policies.figures import (
    chunk_picture,
    energy_landscape,
    energy_over_descent,
    score_histogram,
)


def test_every_figure_becomes_svg_without_global_state(tmp_path, policy_entries) -> None:
    before = dict(mpl.rcParams)
    for name, figure in all_figures(tmp_path, policy_entries).items():
        svg = figure_style.figure_to_svg(figure, name)
        assert svg.startswith(f'<svg id="{name}"') and "currentColor" in svg
        ids = re.findall(r'\bid="([^"]*)"', svg)
        assert len(ids) == len(set(ids)) and all(i.startswith(name) for i in ids)
        used = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', svg)
        assert {a or b for a, b in used} <= set(ids)
        assert figure_style.figure_to_svg(figure, name) == svg
    assert dict(mpl.rcParams) == before


def test_descent_panels_are_relative_to_the_lowest_energy() -> None:
    figure = energy_over_descent({"a": [[5.0, 9.0], [3.0, 2.5]]})
    curves = [line.get_ydata() for line in figure.axes[0].lines]
    assert np.allclose(curves[0], [2.5, 0.5])
    assert np.allclose(curves[1], [6.5, 0.0])  # the one with the lowest final energy, drawn last


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: score_histogram([]), "no entries"),
        (lambda: score_histogram([({"name": "a"}, [])]), "'a'"),
        (lambda: energy_over_descent({}), "no traces"),
        (lambda: energy_over_descent({"a": [1.0, 2.0]}), "2 axes"),
        (lambda: energy_over_descent({"a": [[np.nan]]}), "NaN"),
        (
            lambda: energy_landscape([0, 1], [0, 1, 2], np.ones((2, 3)), [[0, 0]], [], ("", "")),
            r"\(3, 2\)",
        ),
        (
            lambda: energy_landscape([0, 1], [0, 1], np.ones((2, 2)), [[0, 0]], [], ("", "")),
            "same at all grid points",
        ),
        (
            lambda: chunk_picture(np.ones((4, 4)), np.ones((1, 2, 2)), 0, [0.0]),
            "frame",
        ),
        (
            lambda: chunk_picture(np.ones((4, 4, 3)), np.ones((2, 3, 2)), 0, [0.0]),
            "one energy each",
        ),
        (
            lambda: chunk_picture(np.ones((4, 4, 3)), np.ones((1, 3, 2)), 1, [0.0]),
            "best",
        ),
    ],
)
def test_invalid_figure_data_is_refused(draw, message) -> None:
    with pytest.raises(ValueError, match=message):
        draw()


def test_training_logs_are_checked(tmp_path) -> None:
    log = tmp_path / "log.jsonl"
    with pytest.raises(FileNotFoundError):
        figures.training_curve(log)
    log.write_text('{"step": 1, "lr": 0.1}\n')
    with pytest.raises(ValueError, match="loss"):
        figures.training_curve(log)
    log.write_text('{"step": 1, "loss": 1.0}\nnot json\n{"step": 2, "loss": 0.5}\n')
    with pytest.raises(ValueError, match="Line 2"):
        figures.training_curve(log)
