"""Studies of language models: docs/language.md, docs/scaling.md and docs/experiments.md."""

from __future__ import annotations

from benchmarks.evaluations import LanguageEvaluation
from benchmarks.measurements.masked_text import masked_text
from benchmarks.measurements.scaling import ScalingStudy
from benchmarks.study import Part, Run, Study
from benchmarks.tables import text as tables
from ebt_policy.language.qa_datasets import QUESTIONS

CORPORA = {
    # The CPU setting of nanoGPT, which reports a validation loss of 1.88.
    "tinyshakespeare": (
        "task.corpus=tinyshakespeare", "task.tokenizer=char",
        "size.width=128", "size.heads=4", "size.layers=4",
    ),
    "wikitext2": ("task.corpus=wikitext2", "task.vocab_size=1024", "size=xs"),
}  # fmt: skip
TRAINING = (
    "task=text", "task.context=64", "train.batch_size=12", "train.steps=2000",
    "train.minutes=null", "train.lr=1e-3",
)  # fmt: skip
MODELS = {
    "transformer_pp": ("model=transformer_pp",),
    "ebt": ("model=ebt",),
    "ebt_shallow": ("model=ebt", "model.candidate_layers=1"),
    "refiner": ("model=refiner",),
    "ebt_s2": ("model=ebt", "objective=s2"),
}
ENTRIES = ("transformer_pp", "ebt", "ebt_shallow", "refiner", "ebt_s2@steps=3")


def language_study(corpus: str, other_texts: tuple[str, ...], entries: tuple[str, ...]) -> Study:
    """Return the study of language models trained on a text."""
    return Study(
        f"language models on {corpus}: held-out loss, more steps and candidates (1 h on 2 cores)",
        {"loss": Part(LanguageEvaluation((corpus, *other_texts)), f"language_{corpus}", entries)},
        runs={name: Run((*TRAINING, *CORPORA[corpus], *model)) for name, model in MODELS.items()},
        folder=f"runs/language/{corpus}",
    )


MASKED_TRAINING = (
    "task=text", "task.corpus=tinyshakespeare", "task.tokenizer=char", "task.context=64",
    "size=2xs", "train.minutes=null", "train.batch_size=16", "train.lr=2e-3",
    "train.compile=false", "train.steps={updates}",
)  # fmt: skip
FROM_NOISE = ("model=masked_ebt", "objective.init_std=1.0")
FROM_CORRUPTED = ("model=masked_ebt", "objective=s1_corrupted")
MASKED_MODELS = {
    "bert": ("model=bert",),
    "scalar": FROM_NOISE,
    "scalar_corrupted": FROM_CORRUPTED,
    "product": (*FROM_NOISE, "model.energy=product"),
    "product_corrupted": (*FROM_CORRUPTED, "model.energy=product"),
}

STUDIES = {
    "language_tinyshakespeare": language_study("tinyshakespeare", (), ENTRIES),
    "language_wikitext2": language_study(
        "wikitext2",
        ("tinyshakespeare", *QUESTIONS),
        tuple(entry for entry in ENTRIES if entry != "ebt_shallow"),
    ),
    "masked_text": Study(
        "whether masked energy models collapse, against BERT (30 min on 2 cores)",
        {
            "masked_text": Part(
                masked_text, "masked_text", tuple(MASKED_MODELS), table=tables.masked_text
            )
        },
        runs={name: Run((*MASKED_TRAINING, *model)) for name, model in MASKED_MODELS.items()},
        folder="runs/masked_text",
        options={"updates": 1500},
    ),
    "scaling": Study(
        "perplexity over data, width and depth (2 h; parallel=2 needs the extra sweeps)",
        {axis: Part(ScalingStudy(axis), f"scaling_{axis}") for axis in ("data", "width", "depth")},
        folder="runs/scaling",
        options={"parallel": 1},
    ),
}
