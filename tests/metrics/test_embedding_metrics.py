"""Correlation, recall and nearest neighbours of embeddings, against loops."""

import math

import pytest
import torch

from spikenlp.metrics import accuracy_at, nearest, recall_at, similarity_correlation


def cosine(a, b):
    a, b = a.double(), b.double()
    return float((a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt()))


def pearson(x, y):
    mx, my = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    spread = (sum((v - m) ** 2 for v in values) for values, m in ((x, mx), (y, my)))
    return covariance / math.sqrt(math.prod(spread))


def ranks(values):
    """Ties get their mean rank."""
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


def test_correlations_are_those_of_cosines_and_of_their_ranks():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(30, 6, generator=generator) for _ in range(2))
    second[3] = 5 * first[3]  # a cosine of 1 whatever the length
    scores = torch.randint(6, (30,), generator=generator).tolist()
    cosines = [cosine(a, b) for a, b in zip(first, second, strict=True)]
    found = similarity_correlation(first, second, scores)
    assert found["pearson"] == pytest.approx(100 * pearson(cosines, scores), abs=1e-4)
    assert found["spearman"] == pytest.approx(
        100 * pearson(ranks(cosines), ranks(scores)), abs=1e-4
    )


def test_neighbours_are_the_most_similar_without_the_query():
    embeddings = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    embeddings[7] *= 100  # length does not matter
    found = nearest(embeddings, [3, 11], k=5)
    for query, ranking in zip((3, 11), found, strict=True):
        others = [i for i in range(20) if i != query]
        others.sort(key=lambda i: -cosine(embeddings[i], embeddings[query]))
        assert ranking == others[:5]
    assert [len(ranking) for ranking in nearest(embeddings[:3], [0, 1, 2])] == [2, 2, 2]


def test_recall_is_the_mean_share_of_what_is_relevant_among_the_first():
    rankings = [[4, 2, 9, 1], [5, 6, 7, 8], [0, 1, 2, 3]]
    relevant = [{2, 1}, {9}, frozenset({0, 1, 2})]
    assert recall_at(rankings, relevant, k=3) == pytest.approx(100 * (1 / 2 + 0 + 1) / 3)
    assert recall_at(rankings, relevant, k=2) == pytest.approx(100 * (1 / 2 + 0 + 2 / 3) / 3)
    assert accuracy_at(rankings, relevant, k=1) == pytest.approx(100 / 3)
    assert accuracy_at(rankings, relevant, k=2) == pytest.approx(200 / 3)


@pytest.mark.parametrize("arguments", [([], [], 10), ([[1]], [set()], 10), ([[1]], [{1}], 0)])
def test_nothing_to_recall_is_refused(arguments):
    for metric in (recall_at, accuracy_at):
        with pytest.raises(ValueError, match=r"at least one query|k must be >= 1, got 0"):
            metric(*arguments)
