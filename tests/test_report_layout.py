"""The report in a browser: no content is cut off at the right edge at any window width."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from policy_results import make_entry

from ebt_policy.evaluation.report import write_report
from ebt_policy.policies.metrics import POLICY_REPORT, compare

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Write a report with long names and many columns."""
    entries = [
        make_entry(f"a_policy_with_a_very_long_name_{i} (steps 4, candidates 16)", [0.9, 0.8, 0.7])
        for i in range(3)
    ]
    return write_report(
        tmp_path_factory.mktemp("report") / "report.html",
        title="Comparison of policies", comparison=compare(entries), spec=POLICY_REPORT,
        notes=["A note. " * 20],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1400, 1024, 700, 500])
def test_nothing_reaches_the_right_edge(width, report, tmp_path):
    picture = tmp_path / "page.png"
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--force-device-scale-factor=1", f"--window-size={width},3000",
        f"--user-data-dir={tmp_path}/profile", f"--screenshot={picture}", report.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[1] == width
    margin = pixels[:, -8:]
    assert (margin == margin[0, 0]).all(), "content exceeds the right edge"
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10  # the page is not empty
