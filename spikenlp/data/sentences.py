"""Sentences without labels, and questions with their duplicates, from GLUE's tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from datasets import Dataset

from spikenlp.data.tasks import get_task


def distinct_sentences(
    task_name: str, splits: Iterable[Dataset], *, without: Iterable[str] = ()
) -> list[str]:
    """The different sentences of a task's splits, in their order, labels left aside.

    Args:
        splits: of the task, as `load_task` gives them.
        without: sentences that are left out, e.g. those of an evaluation; case and surrounding white
            space do not matter.
    """
    held_out = {text.strip().lower() for text in without}
    columns = get_task(task_name).text_columns
    texts = (text.strip() for split in splits for column in columns for text in split[column])
    return [text for text in dict.fromkeys(texts) if text and text.lower() not in held_out]


@dataclass(frozen=True)
class DuplicateQuestions:
    """Retrieval of duplicates among the questions of QQP's pairs.

    Attributes:
        questions: the different questions of both sides, the corpus.
        relevant: query -> its duplicates, both as indices into `questions`. A query is the first
            question of a duplicate pair; duplicates of duplicates are duplicates.
    """

    questions: list[str]
    relevant: Mapping[int, frozenset[int]]

    @classmethod
    def from_pairs(
        cls, first: Sequence[str], second: Sequence[str], duplicate: Sequence[int]
    ) -> DuplicateQuestions:
        """Of pairs of questions and whether (1) or not (0) they are duplicates.

        Raises:
            ValueError: lengths that differ, or no pair of different questions that is a duplicate.

        >>> found = DuplicateQuestions.from_pairs(["a", "b", "d"], ["b", "c", "e"], [1, 1, 0])
        >>> found.questions, found.relevant[0]
        (['a', 'b', 'd', 'c', 'e'], frozenset({1, 3}))
        """
        if not len(first) == len(second) == len(duplicate):
            raise ValueError(
                f"pairs need as many first ({len(first)}) as second ({len(second)}) questions and "
                f"labels ({len(duplicate)})"
            )
        questions = list(dict.fromkeys([*first, *second]))
        index = {question: i for i, question in enumerate(questions)}
        cluster = {i: {i} for i in range(len(questions))}
        queries: dict[int, None] = {}
        for a, b, same in zip(first, second, duplicate, strict=True):
            i, j = index[a], index[b]
            if not same or i == j:
                continue
            queries[i] = None
            if cluster[i] is not cluster[j]:
                joined = cluster[i] | cluster[j]
                cluster |= dict.fromkeys(joined, joined)
        if not queries:
            raise ValueError("no pair is a duplicate: there is nothing to retrieve")
        return cls(questions, {i: frozenset(cluster[i] - {i}) for i in queries})
