"""Measure on this machine's GPU: ``python -m benchmarks.gpu [sections=latency,text minutes=9]``.

Options: sections (all, or a list separated by commas), minutes (for all sections together), toy
(true for a rehearsal with the smallest sizes, which also runs on a CPU), output (docs/results/gpu).
Every case is stored in ``OUTPUT/CARD/SECTION.json`` as soon as it is measured. Run the command
again to measure the missing cases. A case that does not fit in the remaining time is not started.
At the end, the results are printed as tables.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.command_line import command_line, parse_options
from benchmarks.device import DEVICE, device_name
from benchmarks.gpu import card, images, latency, push_t, text, training
from benchmarks.gpu.report import tables
from benchmarks.gpu.results import SectionResults, TimeBudget, card_folder
from benchmarks.results import RESULTS

SECTIONS = {
    "latency": latency.cases,
    "training": training.cases,
    "push_t": push_t.cases,
    "text": text.cases,
    "images": images.cases,
}  # in order of priority


def main() -> None:
    options = parse_options(sections="all", minutes=9.0, toy=False, output=str(RESULTS / "gpu"))
    names = list(SECTIONS) if options.sections == "all" else options.sections.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        sys.exit(f"error: unknown section {unknown[0]!r}; available: all, {', '.join(SECTIONS)}.")
    if DEVICE.type == "cpu" and not options.toy:
        sys.exit("error: there is no GPU; toy=true rehearses the benchmark on the CPU.")
    budget, toy = TimeBudget(options.minutes), options.toy
    folder = card_folder(Path(options.output))
    print(f"{device_name()}, PyTorch {torch.__version__}, results in {folder}", flush=True)
    rates = SectionResults("card", folder, command_line("gpu"), toy)
    if not rates.run(card.ceilings(toy), budget):
        sys.exit("error: the rates of the card could not be measured; see above.")
    for name in names:
        print(f"{name}, {budget.seconds_left:.0f} s left", flush=True)
        results = SectionResults(name, folder, command_line("gpu"), toy)
        results.run(SECTIONS[name](rates.cases, toy), budget)
    print(tables(folder))


if __name__ == "__main__":
    main()
