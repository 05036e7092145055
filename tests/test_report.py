"""The self-contained HTML report: content, escaping and invalid input."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from policy_results import all_figures, make_entry

from ebt_policy.evaluation.report import write_report
from ebt_policy.policies.figures import score_histogram
from ebt_policy.policies.metrics import POLICY_REPORT, compare

MP4 = b"\x00\x00\x00\x18ftypisom" + b"\x00" * 32
VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use", "image"}


class Page(HTMLParser):
    """A parser that checks the nesting of tags and collects text and loaded resources."""

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
        self.text += data.replace("\u00a0", " ")


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


def test_report_is_complete_and_self_contained(tmp_path, policy_entries) -> None:
    page = report(tmp_path, policy_entries)
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


def test_report_of_one_entry_has_no_comparison(tmp_path) -> None:
    entry = make_entry("a", [0.5], objective=None, steps=None, train_seconds=None)
    page = report(tmp_path, [entry], figures=[], videos=[], notes=[])
    assert "Paired" not in page.text and "Videos" not in page.text and "n/a" in page.text


@pytest.mark.parametrize(
    ("content", "error"), [(None, FileNotFoundError), (b"", ValueError), (b"GIF89a..", ValueError)]
)
def test_invalid_videos_are_refused_before_the_report_is_written(
    tmp_path, policy_entries, content, error
) -> None:
    video = tmp_path / "broken.mp4"
    if content is not None:
        video.write_bytes(content)
    with pytest.raises(error, match=r"broken\.mp4"):
        report(tmp_path, policy_entries, figures=[], videos=[("x", video)])
    assert not (tmp_path / "out").exists()


def test_an_empty_comparison_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="nothing to report"):
        write_report(
            tmp_path / "r.html",
            title="t",
            comparison={"entries": [], "paired": []},
            spec=POLICY_REPORT,
        )
