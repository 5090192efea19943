"""How good sentence embeddings are: correlation with human similarity, recall of what is relevant."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spikenlp.metrics.glue import glue_metrics


def similarity_correlation(
    first: Tensor, second: Tensor, scores: Sequence[float]
) -> dict[str, float]:
    """Spearman's and Pearson's correlation, times 100, of cosines with scores (STS).

    Args:
        first, second: embeddings [N, D] of the two sentences of each pair.
        scores: N similarities given by people.

    Returns:
        `spearman` and `pearson`, in [-100, 100].

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> similarity_correlation(x, x[:1].expand(3, 2), [5.0, 2.0, 0.0])["spearman"]
    100.0
    """
    cosines = F.cosine_similarity(first.double(), second.double(), dim=-1)
    labels = torch.tensor(scores, dtype=torch.float64)
    found = glue_metrics("stsb")(cosines.numpy()[:, None], labels.numpy())
    return {name: 100 * found[name] for name in ("spearman", "pearson")}


def recall_at(
    rankings: Sequence[Sequence[int]], relevant: Sequence[Collection[int]], k: int = 10
) -> float:
    """Mean over queries of the share of what is relevant that stands among the first k, times 100.

    Args:
        rankings: of each query, the items from the best on; k of them are enough.
        relevant: of each query, the items that are relevant.
        k: >= 1.

    Returns:
        In [0, 100].

    Raises:
        ValueError: no query, a query to which nothing is relevant, k < 1.

    >>> recall_at([[3, 1, 2], [0, 1, 2]], [{1, 2}, {0}], k=2)
    75.0
    """
    _check(rankings, relevant, k)
    shares = [
        len(set(ranking[:k]) & set(items)) / len(items)
        for ranking, items in zip(rankings, relevant, strict=True)
    ]
    return 100 * sum(shares) / len(shares)


def accuracy_at(
    rankings: Sequence[Sequence[int]], relevant: Sequence[Collection[int]], k: int = 1
) -> float:
    """Share of the queries that have anything relevant among the first k, times 100.

    Arguments and Raises as for `recall_at`.

    >>> accuracy_at([[3, 1, 2], [1, 0, 2]], [{3, 2}, {0}], k=1)
    50.0
    """
    _check(rankings, relevant, k)
    hits = [
        bool(set(ranking[:k]) & set(items))
        for ranking, items in zip(rankings, relevant, strict=True)
    ]
    return 100 * sum(hits) / len(hits)


def nearest(embeddings: Tensor, queries: Sequence[int], k: int = 10) -> list[list[int]]:
    """The k items of greatest cosine to each query, which is an item itself and left out.

    Args:
        embeddings: [N, D].
        queries: indices of items.
    """
    unit = F.normalize(embeddings.float(), dim=-1)
    similarity = unit[torch.tensor(queries)] @ unit.T
    similarity[torch.arange(len(queries)), torch.tensor(queries)] = -torch.inf
    return similarity.topk(min(k, len(unit) - 1), dim=-1).indices.tolist()


def _check(rankings: Sequence[Sequence[int]], relevant: Sequence[Collection[int]], k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    if not len(rankings) or not all(len(items) for items in relevant):
        raise ValueError("there must be at least one query, and something relevant to each")
