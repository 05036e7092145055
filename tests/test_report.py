"""Results contract, table, figures and the self-contained report."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest

from ebt_policy.evaluation import figure_style, figures, tables
from ebt_policy.evaluation.report import write_report
from ebt_policy.evaluation.tables import markdown_table
from ebt_policy.policies.figures import (
    chunk_picture,
    energy_landscape,
    energy_over_descent,
    score_histogram,
)
from ebt_policy.policies.metrics import POLICY_REPORT, compare, entry_summary, write_results

INFO = {
    "task": "push_t",
    "model": "ebt",
    "params": 341_000,
    "objective": "flow",
    "steps": 4,
    "demos": 206,
    "train_seed": 0,
    "train_steps": 15_000,
    "train_seconds": 900.0,
    "device": "cpu",
}
MP4 = b"\x00\x00\x00\x18ftypisom" + b"\x00" * 32
KEYS = [
    *("name", *INFO),
    *("episodes", "score", "success", "latency_ms", "steps_used", "command", "version"),
]
VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use", "image"}


def make_episodes(scores, seeds=None, latency: float | None = 10.0):
    seeds = range(len(scores)) if seeds is None else seeds
    return [
        {
            "seed": seed,
            "score": score,
            "success": score >= 1.0,
            "length": 16,
            "video": None,
            "chunks": [
                {
                    "step": 8 * i,
                    "energy": -1.0,
                    "grad_norm": 0.1,
                    "steps_used": 4 if latency is not None else None,
                    "latency_ms": latency,
                }
                for i in range(2)
            ],
        }
        for seed, score in zip(seeds, scores, strict=True)
    ]


def make_entry(name, scores, seeds=None, **changes):
    episodes = make_episodes(scores, seeds)
    return entry_summary(name, INFO | changes, episodes, f"eval {name}", version="1.0"), episodes


@pytest.fixture
def entries():
    return [make_entry("energy", [1.0, 0.5, 0.8]), make_entry("diffusion", [0.7, 0.5, 1.0])]


# the results contract


def test_entry_has_exactly_the_keys_of_the_contract() -> None:
    entry, _ = make_entry("energy", [1.0, 0.5])
    assert list(entry) == KEYS
    assert entry["episodes"] == 2 and entry["score"]["mean"] == 0.75
    assert entry["success"]["mean"] == 0.5
    for metric in ("score", "success"):
        assert set(entry[metric]) == {"mean", "ci95"} and len(entry[metric]["ci95"]) == 2
    assert entry["latency_ms"] == {"p50": 10.0, "p95": 10.0, "p99": 10.0}
    assert entry["steps_used"] == {"mean": 4.0}


def test_the_version_is_filled_in() -> None:
    assert entry_summary("e", INFO, make_episodes([1.0]), "c")["version"]


def test_a_policy_that_records_no_latency_says_so() -> None:
    entry = entry_summary("e", INFO, make_episodes([1.0], latency=None), "c")
    assert entry["latency_ms"] == {"p50": None, "p95": None, "p99": None}
    assert entry["steps_used"] == {"mean": None}
    assert "n/a / n/a / n/a" in markdown_table({"entries": [entry], "paired": []}, POLICY_REPORT)


@pytest.mark.parametrize(
    ("name", "info", "episodes", "message"),
    [
        ("", INFO, make_episodes([1.0]), "name"),
        ("e", {"task": "push_t"}, make_episodes([1.0]), "missing: \\['model'"),
        ("e", INFO | {"colour": 1}, make_episodes([1.0]), "unknown: \\['colour'\\]"),
        ("e", INFO, [], "no episodes"),
        ("e", INFO, make_episodes([1.0, 0.2], seeds=[3, 3]), "repeat"),
        ("e", INFO, make_episodes([float("nan")]), "finite"),
        ("e", INFO, make_episodes([1.0], latency=float("inf")), "finite"),
        ("e", INFO, [{"seed": 0}], "'score'|'chunks'"),
    ],
)
def test_bad_entries_are_refused(name, info, episodes, message) -> None:
    with pytest.raises(ValueError, match=message):
        entry_summary(name, info, episodes, "c")


def test_pairs_equal_a_case_worked_by_hand() -> None:
    # a - b = +1, 0, -1 with a's episodes in another order: the mean is 0; all 27 resamples are
    # known, 1 in 27 (3.7 %) lies at either end, so the 95 % interval reaches both.
    a = make_entry("a", [0.0, 1.0, 0.5], seeds=[12, 10, 11])
    b = make_entry("b", [0.0, 0.5, 1.0], seeds=[10, 11, 12])
    result = compare([a, b])
    assert set(result) == {"entries", "paired"}
    assert [e["name"] for e in result["entries"]] == ["a", "b"]
    score, success = result["paired"]
    assert list(score) == ["a", "b", "metric", "diff", "ci95"]
    assert score == {"a": "a", "b": "b", "metric": "score", "diff": 0.0, "ci95": [-1.0, 1.0]}
    assert success == {"a": "a", "b": "b", "metric": "success", "diff": 0.0, "ci95": [-1.0, 1.0]}


def test_every_pair_is_compared_once_and_unlike_entries_never() -> None:
    scores = [0.2, 0.4]
    three = [make_entry(name, scores) for name in "abc"]
    other_seeds = make_entry("d", scores, seeds=[7, 8])
    other_task = make_entry("e", scores, task="lift")
    result = compare([*three, other_seeds, other_task])
    pairs = {(p["a"], p["b"]) for p in result["paired"]}
    assert pairs == {("a", "b"), ("a", "c"), ("b", "c")} and len(result["paired"]) == 6
    assert "Not paired" in markdown_table(result, POLICY_REPORT) and "d and e" in markdown_table(
        result, POLICY_REPORT
    )


def test_nothing_or_twins_cannot_be_compared(entries) -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        compare([])
    with pytest.raises(ValueError, match="'energy'"):
        compare([entries[0], entries[0]])


def test_results_on_disk_read_back_equal(tmp_path, entries) -> None:
    entries[0][1][0]["score"] = np.float32(1.0)  # NumPy numbers are plain numbers on disk
    written = [
        (s, [e | {"states": np.zeros((16, 5))} for e in episodes]) for s, episodes in entries
    ]
    result = write_results(tmp_path / "run", written)  # collected states are left out
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"episodes.jsonl", "summary.json", "table.md"}  # and no temporary file
    assert json.loads((tmp_path / "run/summary.json").read_text("utf-8")) == result
    lines = [json.loads(s) for s in (tmp_path / "run/episodes.jsonl").read_text().splitlines()]
    assert [(s["entry"], s["seed"]) for s in lines] == [
        (name, seed) for name in ("energy", "diffusion") for seed in range(3)
    ]
    assert lines[0] == {"entry": "energy", **entries[0][1][0]}
    assert (tmp_path / "run/table.md").read_text("utf-8") == markdown_table(result, POLICY_REPORT)


def test_a_failed_write_leaves_the_old_results_whole(tmp_path, entries, monkeypatch) -> None:
    write_results(tmp_path, entries)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    entries[0][1][0]["chunks"][0]["energy"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_results(tmp_path, entries)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_results(tmp_path, entries[1:])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_incomplete_episodes_are_not_written(tmp_path, entries) -> None:
    del entries[1][1][2]["video"]
    with pytest.raises(ValueError, match="Episode 2 has no 'video'"):
        write_results(tmp_path / "run", entries)
    assert not (tmp_path / "run").exists()


def test_table_reads_well(entries) -> None:
    table = markdown_table(compare(entries), POLICY_REPORT)
    row = next(line for line in table.splitlines() if line.startswith("| energy | 0.341M"))
    assert "0.767 [0.500, 1.000]" in row
    assert "10.0 / 10.0 / 10.0" in row and row.endswith("| 15.0 |")
    assert "| energy | diffusion | score | +0.033 [" in table
    assert "-0.000" not in table and "over 3 episodes" in table


def test_names_cannot_break_the_table() -> None:
    table = markdown_table(compare([make_entry("a|b\nc", [1.0])]), POLICY_REPORT)
    assert "| a\\|b c | 0.341M" in table and "over 1 episode an" in table


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (9_540, "9.54k"),
        (340_000, "0.34M"),
        (41_200_000, "41.2M"),
        (999_999_999, "1B"),
        (1_234_000_000, "1.23B"),
        (None, "n/a"),
    ],
)
def test_counts_read_well(count, text) -> None:
    assert tables.format_count(count) == text


# figures


def all_figures(tmp_path, entries):
    log = tmp_path / "train.jsonl"
    lines = [{"step": i, "loss": 1 / (i + 1), "val_score": i / 200} for i in range(150)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 150, "lo')
    x, y = np.linspace(-1, 1, 12), np.linspace(-1, 1, 9)
    bowl = x[None] ** 2 + y[:, None] ** 2
    path = np.array([[0.9, 0.9], [0.4, 0.4], [0.1, 0.1]])
    rng = np.random.default_rng(0)
    frame = np.full((32, 32, 3), 255, dtype=np.uint8)
    chunks, energies = rng.uniform(0, 512, (4, 16, 2)), rng.normal(size=4)
    return {
        "forest": figures.forest_plot(compare(entries), ("score", "success")),
        "histogram": score_histogram(entries),
        "descent": energy_over_descent({"a": rng.normal(size=(5, 8)), "b": [[2.0], [1]]}),
        "landscape": energy_landscape(x, y, bowl, path, path[-1:], ("u", "v")),
        "descents": energy_landscape(x, y, bowl, [path, -path], np.empty((0, 2)), ("u", "v")),
        "training": figures.training_curve(log),
        "chunks": chunk_picture(frame, chunks, int(energies.argmin()), energies),
    }


def test_every_figure_becomes_svg_without_global_state(tmp_path, entries) -> None:
    before = dict(mpl.rcParams)
    for name, figure in all_figures(tmp_path, entries).items():
        svg = figure_style.figure_to_svg(figure, name)
        assert svg.startswith(f'<svg id="{name}"') and "currentColor" in svg
        ids = re.findall(r'\bid="([^"]*)"', svg)
        assert len(ids) == len(set(ids)) and all(i.startswith(name) for i in ids)
        used = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', svg)
        assert {a or b for a, b in used} <= set(ids)
        assert figure_style.figure_to_svg(figure, name) == svg
    assert dict(mpl.rcParams) == before


def test_descent_panels_measure_from_the_winner() -> None:
    figure = energy_over_descent({"a": [[5.0, 9.0], [3.0, 2.5]]})
    curves = [line.get_ydata() for line in figure.axes[0].lines]
    assert np.allclose(curves[0], [2.5, 0.5])
    assert np.allclose(curves[1], [6.5, 0.0])  # the winner, drawn last


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
            "same everywhere",
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
def test_bad_pictures_are_refused(draw, message) -> None:
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


# the report


class Page(HTMLParser):
    """Checks that tags nest, and gathers text and everything that a browser would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str | None] = []
        self.ids: list[str | None] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "srcset", "poster", "action"):
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attrs) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def report(tmp_path, entries, **changes) -> Page:
    video = tmp_path / "seed0.mp4"
    video.write_bytes(MP4)
    options = {
        "title": "Push-T",
        "comparison": compare(entries),
        "spec": POLICY_REPORT,
        "figures": [
            (name, f"caption of {name}", figure)
            for name, figure in all_figures(tmp_path, entries).items()
        ],
        "videos": [("seed 0", video)],
        "notes": ["A first note."],
    }
    path = write_report(tmp_path / "out" / "report.html", **(options | changes))
    return Page(path.read_text("utf-8"))


def test_report_holds_everything_and_loads_nothing(tmp_path, entries) -> None:
    page = report(tmp_path, entries)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert all(str(load).startswith(("data:", "#")) for load in page.loads)
    assert any(str(load).startswith("data:video/mp4;base64,") for load in page.loads)
    assert "script" not in page.tags and "link" not in page.tags
    assert page.tags.count("svg") == 8 and page.tags.count("video") == 1
    for text in ("energy", "diffusion", "0.767 [0.500, 1.000]", "eval energy", "A first note."):
        assert text in page.text
    for text in ("caption of descent", "seed 0", "+0.033 [", "push_t, 3 episodes"):
        assert text in page.text
    html = (tmp_path / "out/report.html").read_text("utf-8")
    assert "@import" not in html and not re.search(r"url\(\s*['\"]?(?!#)", html)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["report.html"]


def test_report_escapes_everything(tmp_path) -> None:
    attack = '"><script>alert(1)</script>&{{ 7 * 7 }}'
    entries = [make_entry(attack, [1.0, 0.5], task=attack, device=attack), make_entry("b", [1, 0])]
    page = report(
        tmp_path,
        entries,
        title=attack,
        figures=[(attack, attack, score_histogram(entries))],
        videos=[],
        notes=[attack],
    )
    assert "script" not in page.tags and page.open == []
    assert page.text.count("<script>alert(1)</script>&{{ 7 * 7 }}") >= 8


def test_report_of_one_entry_needs_no_extras(tmp_path) -> None:
    entry = make_entry("a", [0.5], objective=None, steps=None, train_seconds=None)
    page = report(tmp_path, [entry], figures=[], videos=[], notes=[])
    assert "Paired" not in page.text and "Videos" not in page.text and "n/a" in page.text


@pytest.mark.parametrize(
    ("content", "error"), [(None, FileNotFoundError), (b"", ValueError), (b"GIF89a..", ValueError)]
)
def test_bad_videos_stop_the_report_before_it_is_written(tmp_path, entries, content, error) -> None:
    video = tmp_path / "broken.mp4"
    if content is not None:
        video.write_bytes(content)
    with pytest.raises(error, match=r"broken\.mp4"):
        report(tmp_path, entries, figures=[], videos=[("x", video)])
    assert not (tmp_path / "out").exists()


def test_an_empty_comparison_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="nothing to report"):
        write_report(
            tmp_path / "r.html",
            title="t",
            comparison={"entries": [], "paired": []},
            spec=POLICY_REPORT,
        )
