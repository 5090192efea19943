"""F1 of entities in tagged words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Tags = Sequence[str]


def are_entity_tags(names: Iterable[str]) -> bool:
    """Whether all of `names` are O, B-kind or I-kind, and not all of them O."""
    matches = [re.fullmatch(r"O|[BI]-(.+)", name) for name in names]
    return all(matches) and any(match and match[1] for match in matches)


def entities_in(tags: Tags) -> set[tuple[str, int, int]]:
    """(kind, first word, word after the last) of each entity.

    As CoNLL's conlleval reads them, an I-kind that follows no tag of its kind begins an entity as B-kind does.

    >>> sorted(entities_in(["B-PER", "I-PER", "O", "I-LOC"]))
    [('LOC', 3, 4), ('PER', 0, 2)]
    """
    found: set[tuple[str, int, int]] = set()
    start, within = 0, ""
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        begins = prefix == "B" or (prefix == "I" and kind != within)
        if within and (begins or prefix == "O"):
            found.add((within, start, i))
            within = ""
        if begins:
            start, within = i, kind
    return found


def entity_f1(references: Iterable[Tags], predictions: Iterable[Tags]) -> float:
    """F1 over all entities of all sentences; one is right where kind, beginning and end are.

    Tjong Kim Sang & De Meulder, CoNLL-2003. 0 where there are neither references nor predictions.
    """
    right = wanted = given = 0
    for reference, prediction in zip(references, predictions, strict=True):
        there, answered = entities_in(reference), entities_in(prediction)
        right += len(there & answered)
        wanted += len(there)
        given += len(answered)
    return 2 * right / (wanted + given) if wanted + given else 0.0
