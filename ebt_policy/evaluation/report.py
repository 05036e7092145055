"""One HTML file a person can open, keep and send: tables, pictures, videos, notes.

The page loads nothing: styles, figures and videos are inside it, and its content policy forbids
the browser to fetch anything else.
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

    `comparison` is what a `summary.json` holds; `spec` says what the report shows of its entries,
    and the metrics of the forest plot; `figures` are (title,
    caption, Figure); `videos` (label, path of an MP4, H.264 for browsers); `notes` plain sentences.
    All text is escaped. The file is written to a temporary name and renamed; its folder is made
    when missing.

    Raises FileNotFoundError for a video that is not there and ValueError for one that is not an MP4
    or a comparison without entries, before anything is written.
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
    """Return a text whose ``[low, high]`` is not broken between two lines."""
    return re.sub(r"\[[^\]]*\]", lambda match: match[0].replace(" ", "\u00a0"), text)


def _inline(figure: Figure, prefix: str, label: str) -> Markup:
    # Markup only for what Matplotlib wrote, which escapes its own text; the label is escaped here.
    svg = figure_to_svg(figure, prefix)
    described = Markup('<svg role="img" aria-label="{}" ').format(label)
    return Markup(svg.replace("<svg ", described, 1))


def _video_uri(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"The video {path} does not exist: record it before the report.")
    data = path.read_bytes()
    if data[4:8] != b"ftyp":
        raise ValueError(f"{path} is not a whole MP4 file: record it again.")
    return "data:video/mp4;base64," + base64.b64encode(data).decode("ascii")
