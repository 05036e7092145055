"""Tables and figures of the documents: ``python -m benchmarks.render_tables`` (``make results``).

It reads ``docs/results/*.json``. In ``README.md`` and the pages of ``docs``, it replaces the text
between the markers ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``. It also draws the curves of
``docs/assets``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.gpu.report import cards
from benchmarks.results import RESULTS, load_json
from benchmarks.study_figures import delay_curves, energy_study, interventions
from benchmarks.tables import control_loop, datasets, images, policies, text, video
from benchmarks.tables.entry_labels import labelled
from ebt_policy.evaluation.figure_style import save_figure
from ebt_policy.language.figures import scaling_lines
from ebt_policy.language.scaling import scaling_table
from ebt_policy.policies.figures import robustness_curves, suite_overview

Table = Callable[[], str]

BEFORE_REFLOW = {"ebt_12500": "energy before", "flow_matching": "flow matching before"}
SCALING = [f"scaling_{axis}" for axis in ("data", "width", "depth")]


def table_of(table: Callable[..., str], *results: str) -> Table:
    """Return a function without arguments that renders a table of stored results."""
    return lambda: table(*map(load_json, results))


def _language(names: Sequence[str] | None = None) -> str:
    characters = load_json("language_tinyshakespeare")["tinyshakespeare"]
    return text.quality(characters, load_json("language_speed"), names)


def _headline() -> str:
    return policies.headline(load_json)


def _suites() -> str:
    return policies.suites({title: load_json(name) for name, title in policies.SUITES.items()})


# Document -> marker -> table.
TABLES: dict[str, dict[str, Table]] = {
    "README.md": {
        "headline": _headline,
        "suites": _suites,
        "language": partial(_language, text.HEADLINE),
        "denoising": table_of(images.denoising_headline, "denoising_cbsd68_s"),
    },
    "docs/push_t.md": {
        "push_t": table_of(policies.scores, "push_t"),
        "selection": table_of(partial(policies.compared, updates=True), "push_t_selection"),
        "speed": table_of(policies.speed, "speed"),
        "recovery": table_of(policies.recovery, "recovery_push_t"),
        "recovery_selection": table_of(policies.recovery, "recovery_push_t_selection"),
        "energy": table_of(policies.energy, "energy"),
        "rollouts": table_of(policies.rollouts, "rollouts"),
    },
    "docs/energy_uses.md": {
        **{
            name: table_of(policies.compared, name)
            for name in ("judging", "judging_strong", "composition")
        },
        "few_data": table_of(policies.few_data, "few_data"),
        "few_data_equal_time": table_of(policies.compared, "few_data_equal_time"),
        "one_step": table_of(partial(policies.compared, runs=BEFORE_REFLOW), "one_step"),
        "streaming": table_of(control_loop.streaming, "streaming"),
    },
    "docs/recordings.md": {
        "g1_numbers": table_of(datasets.held_out, "g1_numbers"),
        "g1_numbers_short": table_of(datasets.held_out, "g1_numbers_short"),
        "g1_cameras": table_of(datasets.held_out, "g1_cameras"),
        "interventions": table_of(control_loop.interventions, "interventions"),
    },
    "docs/how_to/own_data.md": {"dataset_speed": table_of(datasets.dataset_speed, "dataset_speed")},
    "docs/how_to/export.md": {"export_speed": table_of(policies.export_speed, "export_speed")},
    "docs/how_to/lerobot.md": {"lerobot": table_of(policies.compared, "lerobot")},
    "docs/how_to/robomimic.md": {
        "robomimic": table_of(partial(policies.compared, metrics=("success",)), "robomimic")
    },
    "docs/how_to/serve.md": {"serving": table_of(control_loop.serving, "serving")},
    "docs/how_to/costs.md": {"cost_speed": table_of(policies.cost_speed, "cost_speed")},
    "docs/simulated_robots.md": {
        **{name: table_of(policies.suite, name) for name in policies.SUITES},
        **{
            name: table_of(policies.recovery_and_retries, name)
            for name in (
                "recovery_lift_disturbed",
                "recovery_metaworld-peg-insert-side_disturbed",
            )
        },
    },
    "docs/real_robot.md": {
        "delay": table_of(control_loop.delay, "delay"),
        "real_time": table_of(control_loop.real_time, "real_time"),
        "record_train_run": table_of(control_loop.record_train_run, "record_train_run"),
    },
    "docs/language.md": {
        "language": _language,
        "other_texts": table_of(text.other_texts, "language_wikitext2"),
        "thinking": table_of(text.thinking, "language_wikitext2"),
    },
    "docs/experiments.md": {
        "ablations": table_of(partial(policies.scores, minutes=False), "ablations"),
        "masked_text": table_of(text.masked_text, "masked_text"),
    },
    "docs/vision.md": {
        **{
            name: table_of(images.denoising, name)
            for name in (
                "denoising_cbsd68_s",
                "denoising_cbsd68_2xs",
                "denoising_set12_2xs",
                "denoising_bsd68_2xs",
            )
        },
        "generation": table_of(images.generation, "generation"),
        "video_g1": table_of(video.video, "video_g1"),
        "video_push_t": table_of(video.video, "video_push_t"),
        "probe": table_of(images.probes, "representation"),
        "detectors": table_of(images.detectors, "representation"),
        "image_speed_cpu": table_of(images.speed, "image_speed_cpu"),
        "image_speed_cuda": table_of(images.speed, "image_speed_cuda"),
    },
    "docs/gpu.md": {"gpu": lambda: cards(RESULTS / "gpu")},
    "docs/scaling.md": {name: table_of(scaling_table, name) for name in SCALING},
}
FIGURES = {
    "energy": energy_study,
    "recovery_push_t": lambda result: robustness_curves(labelled(result)),
    **dict.fromkeys(policies.SUITES, lambda result: suite_overview(labelled(result))),
    "delay": delay_curves,
    "interventions": interventions,
    **dict.fromkeys(SCALING, scaling_lines),
}


def render(document: str, tables: Mapping[str, Table]) -> str:
    """Return a document with its tables replaced by tables of the stored results.

    Raises:
        ValueError: the document lacks the markers of a table.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in document or end not in document:
            raise ValueError(f"the document lacks the markers {begin} and {end}.")
        before, _, tail = document.partition(begin)
        _, _, after = tail.partition(end)
        document = f"{before}{begin}\n{table()}{end}{after}"
    return document


def main() -> None:
    for document, tables in TABLES.items():
        path = Path(document)
        path.write_text(render(path.read_text(), tables))
    for name, draw in FIGURES.items():
        save_figure(draw(load_json(name)), Path("docs/assets") / f"{name}.svg")


if __name__ == "__main__":
    main()
