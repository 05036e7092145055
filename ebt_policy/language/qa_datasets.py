"""Question-answering data sets as text, to evaluate language models trained on other text.

GSM8K (Cobbe et al. 2021), SQuAD 1.1 (Rajpurkar et al. 2016) and two tasks of BIG-Bench Hard
(Suzgun et al. 2022), in the prompt format of the EBT paper's code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple


def _grade_school(raw: str) -> Iterator[tuple[str, str]]:
    for line in raw.splitlines():
        problem = json.loads(line)
        yield problem["question"], problem["answer"]


def _squad(raw: str) -> Iterator[tuple[str, str]]:
    for article in json.loads(raw)["data"]:
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                yield f"{paragraph['context']} {entry['question']}", entry["answers"][0]["text"]


def _hard(raw: str) -> Iterator[tuple[str, str]]:
    for example in json.loads(raw)["examples"]:
        yield example["input"], example["target"]


class Questions(NamedTuple):
    """Where a question-answering data set is stored, and how to parse it.

    Attributes:
        archive: name of the zip file.
        member: path inside the archive.
        parse: content of the member -> pairs of a question and an answer.
    """

    archive: str
    member: str
    parse: Callable[[str], Iterator[tuple[str, str]]]

    def text(self, raw: str) -> str:
        """Return all questions and answers as one text.

        Args:
            raw: content of the member.

        Raises:
            KeyError, IndexError, ValueError: ``raw`` does not have the expected structure.
        """
        pairs = self.parse(raw)
        return "\n\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in pairs)


QUESTIONS = {
    "gsm8k": Questions("gsm8k.zip", "gsm8k/test.jsonl", _grade_school),
    "squad": Questions("squad_dev_v1.1.zip", "squad/dev-v1.1.json", _squad),
    "dyck_languages": Questions("bbh.zip", "bbh/dyck_languages.json", _hard),
    "multistep_arithmetic": Questions("bbh.zip", "bbh/multistep_arithmetic_two.json", _hard),
}
