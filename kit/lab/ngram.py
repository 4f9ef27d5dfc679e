r"""N-gram language models: predict the next token from the few before it.

They were the strongest models of text before neural networks, and are the baseline of
`recipes/lstm.py` and `recipes/transformer.py`. c(h w) counts how often token w followed
the context h of k tokens in training. Most long contexts never occurred, so each order
is interpolated with the next shorter one, h' being h without its oldest token, down to
the uniform distribution:

    p(w | h) = max(c(h w) - D, 0) / c(h) + gamma(h) p(w | h')

- modified Kneser-Ney: three discounts D for counts of 1, 2, and 3 or more, estimated
  for each order from the number of n-grams with these counts. Below the highest order,
  c(h w) is the number of different tokens that precede h w in the text, not its
  frequency: "Francisco" is frequent, but follows only one word.
- Witten-Bell: no discount; gamma(h) = n / (n + c(h)), where n is the number of
  different tokens seen after h, and the first term is scaled by 1 - gamma(h).

The implementation uses NumPy and sorted tables: a million characters take one to two
seconds per order (NLTK's `nltk.lm` needs minutes to score a few thousand).

References: Chen and Goodman, 1999, https://doi.org/10.1006/csla.1999.0128 (equations 2
and 10-14); Witten and Bell, 1991, https://doi.org/10.1109/18.87000.
"""

from typing import Any

import numpy as np

from kit import checks

SMOOTHINGS = ("kneser_ney", "witten_bell")
ACCEPTED = {
    "order": checks.integer("[1, 1000]"),
    "smoothing": checks.one_of(*SMOOTHINGS),
    "tokens": checks.array("T", "integers"),
    "context": checks.array("T", "integers"),
    "vocabulary_size": checks.SIZE,
    "train": checks.array("T", "integers"),
    "valid": checks.array("V", "integers"),
    "max_order": checks.integer("[1, 1000]"),
}


class NGram:
    """An interpolated n-gram model of a sequence of integers.

    Args:
        order: Length of the longest n-grams, 1 or more: each token is predicted from
            the `order - 1` before it. 5 to 8 for characters.
        smoothing: `"kneser_ney"` (modified, interpolated) or `"witten_bell"`.
            Defaults to `"kneser_ney"`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range.

    Example:

    ```python
    tokens = np.array([0, 1, 0, 1, 0, 2, 0, 1])
    model = kit.ngram.NGram(order=2).fit(tokens, vocabulary_size=3)
    model.probabilities([0, 1])  # p(0) and p(1 | 0)
    ```
    """

    def __init__(self, order: int, smoothing: str = "kneser_ney"):
        checks.check(self, locals(), ACCEPTED)
        self.order = order
        self.smoothing = smoothing

    def fit(self, tokens: Any, vocabulary_size: int) -> "NGram":
        """Counts the n-grams of a text.

        Args:
            tokens: Integers in [0, V), shape `(T,)`.
            vocabulary_size: V.

        Returns:
            The model.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If the tokens aren't such integers, or are too few.
        """
        checks.check("NGram.fit", locals(), ACCEPTED)
        self.vocabulary_size = vocabulary_size
        tokens = self._checked(tokens)
        if len(tokens) < self.order:
            raise ValueError(
                f"`tokens` must hold one n-gram of order {self.order} at least, "
                f"received {len(tokens)} tokens."
            )
        # For each length k of the context: a context's key combines the number of the
        # context without the oldest token, and that token. A context's number is its
        # index in the sorted table.
        self._contexts: list[np.ndarray] = []
        grams: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        numbers = np.zeros(len(tokens), "int64")  # of the context before each token
        for k in range(self.order):
            keys = numbers if k == 0 else self._key(numbers[1:], tokens[:-k])
            contexts, numbers = np.unique(keys, return_inverse=True)
            self._contexts.append(contexts)
            pairs = self._key(numbers, tokens[k:])
            for values, kept in zip(
                np.unique(pairs, return_counts=True), (grams, counts), strict=True
            ):
                kept.append(values)
        if self.smoothing == "kneser_ney":
            for k in range(self.order - 1):  # number of different tokens before h w
                numbers, last = np.divmod(grams[k + 1], vocabulary_size)
                shorter = self._contexts[k + 1][numbers] // vocabulary_size
                places = np.searchsorted(grams[k], self._key(shorter, last))
                counts[k] = np.bincount(places, minlength=len(grams[k]))
                # The text's beginning has no token before it, which counts as one.
                counts[k] = np.maximum(counts[k], 1)
        self._grams = grams
        self._weights = [
            self._smooth(gram // vocabulary_size, count)
            for gram, count in zip(grams, counts, strict=True)
        ]
        return self

    def probabilities(self, tokens: Any) -> np.ndarray:
        """Returns the probability of each token of a text, given those before it.

        Args:
            tokens: Integers in [0, V), shape `(T,)`. The first have short contexts.

        Returns:
            float64 of shape `(T,)`.

        Raises:
            ValueError: If the tokens aren't such integers.
        """
        tokens = self._checked(tokens)
        result = np.full(len(tokens), 1.0 / self.vocabulary_size)
        numbers = np.zeros(len(tokens), "int64")
        for k in range(min(self.order, len(tokens))):
            if k:
                keys = self._key(numbers[1:], tokens[:-k])
                numbers = np.where(numbers[1:] < 0, -1, _find(self._contexts[k], keys))
            seen = np.flatnonzero(numbers >= 0)  # else the shorter context's result
            gram = _find(self._grams[k], self._key(numbers[seen], tokens[k:][seen]))
            direct, gamma = self._weights[k]
            first = np.where(gram >= 0, direct[gram], 0.0)
            result[k:][seen] = first + gamma[numbers[seen]] * result[k:][seen]
        return result

    def next_probabilities(self, context: Any) -> np.ndarray:
        """Returns the probability of each token after a context.

        Args:
            context: Integers in [0, V), shape `(T,)`, the last of which count; at least
                one.

        Returns:
            float64 of shape `(V,)`; the sum is 1.

        Raises:
            ValueError: If the context isn't such integers.
        """
        context = self._checked(context, "context")
        result = np.full(self.vocabulary_size, 1.0 / self.vocabulary_size)
        number, every = 0, np.arange(self.vocabulary_size)
        for k in range(min(self.order, len(context) + 1)):
            if k:
                key = np.array([self._key(number, context[-k])])
                number = int(_find(self._contexts[k], key)[0])
                if number < 0:  # the context never occurred
                    break
            gram = _find(self._grams[k], self._key(number, every))
            direct, gamma = self._weights[k]
            result = np.where(gram >= 0, direct[gram], 0.0) + gamma[number] * result
        return result

    def bits_per_token(self, tokens: Any) -> float:
        """Returns the mean of -log2 of the tokens' probabilities."""
        return float(-np.log2(self.probabilities(tokens)).mean())

    def _smooth(self, contexts, counts):
        """Returns the first term for each n-gram, and gamma for each context."""
        totals = np.bincount(contexts, counts)
        if self.smoothing == "witten_bell":
            different = np.bincount(contexts)
            return counts / (totals + different)[contexts], different / (
                totals + different
            )
        discounts = _discounts(counts)[np.minimum(counts, 3)]
        gamma = np.bincount(contexts, discounts) / totals
        return (counts - discounts) / totals[contexts], gamma

    def _key(self, numbers, tokens):
        return numbers * self.vocabulary_size + tokens

    def _checked(self, tokens, name="tokens"):
        checks.check("NGram", {name: tokens}, ACCEPTED)
        tokens = np.asarray(tokens)
        size = self.vocabulary_size
        if not 0 <= tokens.min() <= tokens.max() < size:
            raise ValueError(
                f"`{name}` must be integers from 0 to {size - 1} in one dimension, "
                f"received {tokens.dtype} of shape {tokens.shape}."
            )
        return tokens.astype("int64")


def best_ngram(
    train: Any, valid: Any, vocabulary_size: int, max_order: int = 16
) -> NGram:
    """Returns the n-gram model with the fewest bits per token on a validation text.

    For each smoothing, it tries longer and longer n-grams until the score gets worse.

    Args:
        train: Integers in [0, V) to count, shape `(T,)`.
        valid: Validation text, integers in [0, V), at least one.
        vocabulary_size: V.
        max_order: Longest n-grams to try. Defaults to 16.

    Returns:
        The `NGram`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `max_order` is less than 1, or `valid` is empty.
    """
    checks.check("best_ngram", {"vocabulary_size": vocabulary_size}, ACCEPTED)
    places = f"[0, {vocabulary_size - 1}]"
    text = checks.array("T", "integers", places), checks.array("V", "integers", places)
    accepted = {**ACCEPTED, "train": text[0], "valid": text[1]}
    checks.check("best_ngram", locals(), accepted)
    best, least = None, np.inf
    for smoothing in SMOOTHINGS:
        before = np.inf
        for order in range(1, max_order + 1):
            model = NGram(order, smoothing).fit(train, vocabulary_size)
            bits = model.bits_per_token(valid)
            if bits < least:
                best, least = model, bits
            if bits >= before:
                break
            before = bits
    assert best is not None
    return best


def _discounts(counts):
    """Returns discounts for counts of 0, 1, 2, 3 or more (Chen and Goodman, eq. 26)."""
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=6)[1:5]
    if not all((n1, n2, n3, n4)):  # a text too small for the estimate
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n1 / (n1 + 2 * n2)
    found = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    # A discounted count must stay above 0 and below the count.
    return np.array([0.0, *np.clip(found, 0.05, [0.95, 1.95, 2.95])])


def _find(table, keys):
    """Returns the indices of keys in a sorted table, -1 for missing keys."""
    places = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[places] == keys, places, -1)
