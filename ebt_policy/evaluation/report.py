"""Report of an evaluation as one self-contained HTML file: tables, figures, videos and notes.

The page loads no other files. Styles, figures and videos are embedded, and its content security
policy forbids the browser to fetch anything.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ebt_policy.evaluation.figure_style import figure_to_svg
from ebt_policy.evaluation.figures import forest_plot
from ebt_policy.evaluation.tables import ReportSpec, format_interval, unpaired_names
from ebt_policy.io.atomic_write import atomic_write


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    comparison: Mapping[str, Any],
    spec: ReportSpec,
    figures: Sequence[tuple[str, str, Figure]] = (),
    videos: Sequence[tuple[str, str | os.PathLike[str]]] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write a self-contained HTML report and return its path.

    All text is escaped. The file is written under a temporary name and then renamed. Its folder is
    created if missing.

    Args:
        path: the HTML file.
        title: title of the page.
        comparison: the content of a `summary.json`.
        spec: content of the tables and the metrics of the forest plot.
        figures: (title, caption, figure) of each figure.
        videos: (label, path) of each video; MP4 files with H.264, which browsers can play.
        notes: sentences of plain text.

    Raises:
        FileNotFoundError: a video does not exist.
        ValueError: a video is not an MP4 file, or the comparison has no entries. Errors are raised
            before the report is written.
    """
    if not comparison["entries"]:
        raise ValueError("There is nothing to report: the comparison has no entries.")
    clips = [{"label": label, "uri": _video_uri(Path(video))} for label, video in videos]
    pictures = [
        {"title": heading, "caption": caption, "svg": _inline(figure, f"figure-{i}", heading)}
        for i, (heading, caption, figure) in enumerate(figures)
    ]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(interval=format_interval, unbroken=_keep_intervals_whole)
    template = files("ebt_policy.evaluation").joinpath("report.html.j2").read_text("utf-8")
    html = environment.from_string(template).render(
        title=title,
        header=spec.header,
        rows=[spec.row(entry) for entry in comparison["entries"]],
        facts=[(entry["name"], spec.facts(entry)) for entry in comparison["entries"]],
        paired=comparison["paired"],
        unpaired=unpaired_names(comparison),
        paired_over=spec.paired_over,
        interval_note=spec.note(comparison),
        forest=_inline(
            forest_plot(comparison, spec.metrics),
            "forest",
            f"{' and '.join(spec.metrics)} with 95 % intervals",
        )
        if spec.metrics
        else None,
        figures=pictures,
        videos=clips,
        notes=notes,
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, html)
    return target


def _keep_intervals_whole(text: str) -> str:
    """Return the text with non-breaking spaces inside each ``[low, high]``."""
    return re.sub(r"\[[^\]]*\]", lambda match: match[0].replace(" ", "\u00a0"), text)


def _inline(figure: Figure, prefix: str, label: str) -> Markup:
    # Matplotlib escapes the text in its SVG, so it can be Markup. The label is escaped here.
    svg = figure_to_svg(figure, prefix)
    described = Markup('<svg role="img" aria-label="{}" ').format(label)
    return Markup(svg.replace("<svg ", described, 1))


def _video_uri(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"The video {path} does not exist; record it before the report.")
    data = path.read_bytes()
    if data[4:8] != b"ftyp":
        raise ValueError(f"{path} is not a complete MP4 file; record it again.")
    return "data:video/mp4;base64," + base64.b64encode(data).decode("ascii")
