"""Rankings of texts: by words, merged, and measured.

Shapes: Q questions, N texts. Scores are larger for texts that fit better.

Papers: Robertson and Zaragoza, 2009, https://doi.org/10.1561/1500000019 (BM25); Cormack
et al., 2009, https://doi.org/10.1145/1571941.1572114 (reciprocal rank fusion).
"""

from collections.abc import Callable, Sequence

import numpy as np

from kit import checks

TEXTS = checks.sequence(checks.TEXT, least=1)
ACCEPTED = {
    "texts": TEXTS,
    "questions": TEXTS,
    "analyzer": checks.FUNCTION,
    "k1": checks.WEIGHT,
    "b": checks.FRACTION,
    "scores": checks.array("Q N", interval="(-inf, inf)"),
    "relevant": checks.array("Q N", interval="[0, 1]"),
    "k": checks.WEIGHT,
}


class BM25:
    """Scores texts by the words of a question.

        score = sum_w idf_w tf_w / (tf_w + k1 (1 - b + b L / mean L))
        idf_w = log(1 + (N - n_w + 0.5) / (n_w + 0.5))

    over the words w of the question. tf_w: how often w is in the text; L: number of the
    text's words; n_w: number of texts that contain w.

    Args:
        texts: The N texts.
        analyzer: Function from a text to a list of its words.
        k1: How much further occurrences of a word count. Usually 1.2 to 2. Defaults to
            1.2.
        b: How much long texts are penalized, in [0, 1]. Defaults to 0.75.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range, or no text has any words.
    """

    def __init__(
        self,
        texts: Sequence[str],
        analyzer: Callable[[str], list[str]] = str.split,
        k1: float = 1.2,
        b: float = 0.75,
    ):
        checks.check(self, locals(), ACCEPTED)
        from sklearn.feature_extraction.text import CountVectorizer

        self.counter = CountVectorizer(analyzer=analyzer)
        counts = self.counter.fit_transform(texts).tocoo()  # (N, words)
        lengths = np.bincount(counts.row, counts.data, len(texts))
        n = np.bincount(counts.col, minlength=counts.shape[1])
        idf = np.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
        norm = k1 * (1 - b + b * lengths / lengths.mean())
        tf = counts.data.astype("float64")
        counts.data = idf[counts.col] * tf / (tf + norm[counts.row])
        self.weights = counts.tocsr()

    def scores(self, questions: Sequence[str]) -> np.ndarray:
        """Returns the scores of the texts for each question, `(Q, N)`."""
        checks.check(self, locals(), ACCEPTED)
        return (self.counter.transform(questions) @ self.weights.T).toarray()


def reciprocal_rank_fusion(scores: Sequence[np.ndarray], k: float = 60) -> np.ndarray:
    """Merges rankings whose scores have different scales: sum of 1 / (k + rank).

    Args:
        scores: Scores of each method, `(Q, N)`. Equal ones share their mean rank.
        k: How little the first ranks count more than the next ones. Defaults to 60, the
            paper's.

    Returns:
        Scores `(Q, N)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there are no scores, or shapes differ.
    """
    several = {"scores": checks.sequence(ACCEPTED["scores"], least=1)}
    checks.check("reciprocal_rank_fusion", locals(), {**ACCEPTED, **several})
    from scipy import stats

    ranks = [stats.rankdata(-np.asarray(x), axis=1) for x in scores]
    return np.sum([1 / (k + rank) for rank in ranks], axis=0)


def first_ranks(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Returns the rank of the best relevant text for each question.

    The mean of 1 / rank is the mean reciprocal rank. The share of ranks up to k is the
    hit rate at k.

    Args:
        scores: Scores `(Q, N)`. Of equal ones, those of relevant texts come last.
        relevant: Booleans `(Q, N)`, at least one `True` for each question.

    Returns:
        Ranks from 1 on, integers `(Q,)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If shapes differ, or a question has no relevant text.

    Example:

    ```python
    first_ranks([[0.9, 0.5, 0.7]], [[False, True, False]])  # 3
    ```
    """
    checks.check("first_ranks", locals(), ACCEPTED)
    scores, relevant = np.asarray(scores), np.asarray(relevant, bool)
    if not relevant.any(axis=1).all():
        raise ValueError(
            "first_ranks: `relevant` must have a True in each row, received "
            f"{int((~relevant.any(axis=1)).sum())} rows without."
        )
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + (~relevant & (scores >= best)).sum(axis=1)
