"""Metrics of generated examples: variety, realism, novelty.

No loss measures the quality of a GAN's generator, as the loss depends on the current
discriminator. These metrics compare samples with real examples, mostly by means of a
classifier that is trained on real ones.
"""

import numpy as np

from kit import checks

ACCEPTED = {
    "probabilities": checks.array("N C", interval="[0, 1]"),
    "min_share": checks.FRACTION,
    "confidence": checks.FRACTION,
    "features": checks.array("N F", interval="(-inf, inf)"),
    "other": checks.array("M F", interval="(-inf, inf)"),
    "samples": checks.array("N *E", interval="(-inf, inf)"),
    "references": checks.array("M *E", interval="(-inf, inf)"),
}


def classes_covered(
    probabilities: np.ndarray, min_share: float = 0.02, confidence: float = 0.9
) -> int:
    """Counts the classes that the samples cover, according to a classifier.

    A class is covered if at least `min_share` of all samples are classified as it with
    at least `confidence`. After mode collapse, a generator covers few classes, however
    real its samples look.

    Args:
        probabilities: The classifier's probabilities of each sample, `(N, C)`.
        min_share: Share in [0, 1] of the samples that a class needs. Defaults to 0.02,
            a fifth of the share of ten equal classes.
        confidence: Smallest probability with which a sample counts. Defaults to 0.9.

    Returns:
        A number from 0 to C.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `probabilities` isn't a matrix of probabilities.

    Example:

    ```python
    classes_covered(np.array([[0.99, 0.01], [0.95, 0.05]]))  # 1
    ```
    """
    checks.check("classes_covered", locals(), ACCEPTED)
    probabilities = np.asarray(probabilities)
    if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise ValueError(
            "classes_covered: `probabilities` must be of shape (N, C), each row with "
            f"the sum 1, received shape {probabilities.shape}."
        )
    sure = probabilities.max(axis=1) >= confidence
    counts = np.bincount(
        probabilities.argmax(axis=1)[sure], minlength=probabilities.shape[1]
    )
    return int(np.sum(counts >= max(1, min_share * len(probabilities))))


def frechet_distance(features: np.ndarray, other: np.ndarray) -> float:
    """Returns the Fréchet distance of two sets of features, assumed to be normal.

    |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), with means m and covariances S.
    It is 0 for equal sets, and low if both sets have the same kinds of examples and the
    same variety. It is biased by the number of examples: compare distances only for
    equal numbers.

    Args:
        features: Activations of a classifier's hidden layer, `(N, F)`.
        other: The same for other examples, `(M, F)`.

    Returns:
        The distance (squared, as is usual), 0 or more.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the shapes don't agree, there are fewer than two examples, or a
            feature isn't finite.

    Reference: Heusel et al., 2017, https://arxiv.org/abs/1706.08500.
    """
    checks.check("frechet_distance", locals(), ACCEPTED)
    sets = [np.asarray(x, "float64") for x in (features, other)]
    shapes = [x.shape for x in sets]
    if any(shape[0] < 2 for shape in shapes):
        raise ValueError(
            "frechet_distance: `features` and `other` must be of the shapes (N, F) and "
            f"(M, F), with two examples or more, received {shapes[0]} and {shapes[1]}."
        )
    means = [x.mean(axis=0) for x in sets]
    a, b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in sets)
    # (A B)^(1/2) has the trace of (A^(1/2) B A^(1/2))^(1/2), which is symmetric.
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    eigenvalues = np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)
    trace = np.trace(a) + np.trace(b) - 2 * np.sum(np.sqrt(eigenvalues))
    return max(0.0, float(np.sum((means[0] - means[1]) ** 2) + trace))


def nearest_neighbours(
    samples: np.ndarray, references: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest reference of each sample, by Euclidean distance.

    With training examples as references, it shows whether samples are copies: compare
    the distances with those of test examples, which are certainly new.

    Args:
        samples: Examples `(N, ...)`.
        references: Examples of the same shape `(M, ...)`.

    Returns:
        Distances `(N,)`, and the indices of the references, `(N,)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the examples' shapes don't agree, or there are none.
    """
    checks.check("nearest_neighbours", locals(), ACCEPTED)
    samples, references = np.asarray(samples), np.asarray(references)
    a = samples.reshape(len(samples), -1).astype("float64")
    b = references.reshape(len(references), -1).astype("float64")
    # |a|^2 - 2 a.b + |b|^2 finds the nearest; the distance is then computed exactly.
    indices = np.argmin(np.sum(b**2, axis=1) - 2 * a @ b.T, axis=1)
    return np.linalg.norm(a - b[indices], axis=1), indices
