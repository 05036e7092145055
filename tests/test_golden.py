"""Models and objectives reproduce their records; stored checkpoints load, stored runs resume.

On a machine like the one that wrote the records, all numbers are equal to the last bit. Other
machines round differently, and training amplifies this. For them the tolerances `TRAINED` and
`STORED_CHECKPOINT` apply. With other vector widths (ATEN_CPU_CAPABILITY=avx2 and default),
predictions after a training differed by at most 1e-5, predictions of stored checkpoints by 3e-6
and losses by 1e-6.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from golden_cases import CASES, COMPILED, INTERRUPTED, STORED, kind_of, run_of
from golden_data import working_in
from golden_predictions import Predictions, losses, predict, predict_compiled, train
from golden_records import (
    CHECKPOINTS,
    RUNS,
    Records,
    depends_on_rounding,
    fingerprint,
    prepare,
    split_vector,
    texts,
    to_vector,
)

from ebt_policy.train import main

# Tolerances, relative to the largest number of a tensor, on machines that round differently: for
# predictions after a training, and for predictions of a stored checkpoint.
TRAINED, STORED_CHECKPOINT = 1e-4, 3e-5
COMPILED_ON_SAME_MACHINE = 1e-5


@pytest.fixture(scope="module")
def records() -> Records:
    return Records.read()


@pytest.fixture(scope="module")
def exact(records) -> bool:
    """Return whether this machine rounds numbers like the one that wrote the records."""
    return records.made_by == fingerprint()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    prepare(folder)
    return folder


@pytest.fixture
def folder(data):
    with working_in(data):
        yield data


def check(records: Records, name: str, predictions: Predictions, tolerance: float | None) -> None:
    """Compare predictions with the records, to the last bit if ``tolerance`` is None."""
    array, shapes = to_vector(predictions)
    assert shapes == records.cases[name]["shapes"], name
    actual = split_vector(array, shapes)
    for key, expected in records.predictions(name).items():
        if tolerance is None or not depends_on_rounding(name, key):
            compare(actual[key], expected, tolerance, f"{name}: {key}")
    if tolerance is None:
        assert texts(predictions) == records.cases[name]["texts"], name


def compare(
    actual: np.ndarray, expected: np.ndarray, tolerance: float | None, message: str
) -> None:
    if tolerance is None:
        np.testing.assert_array_equal(actual, expected, err_msg=message)
    else:
        atol = tolerance * float(np.abs(expected).max())
        np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=message)


def check_losses(records: Records, name: str, actual: list[float], exact: bool) -> None:
    expected = np.array(records.losses(name))
    compare(np.array(actual), expected, None if exact else TRAINED, f"{name}: losses")


def require_extra(name: str) -> None:
    if extra := CASES[name].extra:
        pytest.importorskip(extra)


def test_every_case_is_recorded(records):
    assert list(records.cases) == [*CASES, *INTERRUPTED]
    stored = {path.parent.relative_to(CHECKPOINTS) for path in CHECKPOINTS.rglob("*.yaml")}
    assert sorted(map(str, stored)) == sorted(STORED)


@pytest.mark.parametrize("name", CASES)
def test_training_and_predictions_equal_the_record(name, records, exact, folder):
    require_extra(name)
    run = train(CASES[name].arguments, run_of(name))
    check_losses(records, name, losses(run), exact)
    predictions = predict(kind_of(name), run, CASES[name].inference)
    check(records, name, predictions, None if exact else TRAINED)


@pytest.mark.parametrize("name", STORED)
def test_stored_checkpoint_predictions_equal_the_record(name, records, exact, folder):
    require_extra(name)
    predictions = predict(kind_of(name), CHECKPOINTS / name, CASES[name].inference)
    check(records, name, predictions, None if exact else STORED_CHECKPOINT)


@pytest.mark.parametrize("name", INTERRUPTED)
def test_stored_run_resumes_as_if_uninterrupted(name, records, exact, folder, call_entry):
    run = folder / run_of(name)
    shutil.copytree(RUNS / kind_of(name), run)
    arguments = (*INTERRUPTED[name], f"run_dir={run_of(name)}", "resume=true")
    assert call_entry(main, *arguments) == (0, "")
    check_losses(records, name, losses(run), exact)
    check(records, name, predict(kind_of(name), run, {}), None if exact else TRAINED)


@pytest.mark.slow
@pytest.mark.skipif("ATEN_CPU_CAPABILITY" in os.environ, reason="ignored by compiled code")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_predictions_equal_the_record(name, records, exact, compiler):
    expected = records.predictions(name)
    for key, actual in predict_compiled(CHECKPOINTS / name).items():
        tolerance = COMPILED_ON_SAME_MACHINE if exact else STORED_CHECKPOINT
        compare(actual.numpy(), expected[key], tolerance, f"{name}: {key}")
