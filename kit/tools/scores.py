"""What the report shows of each recipe: main score, curve, published figures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """The figure of `metrics.json` by which a recipe is judged.

    Args:
        title: Name of the algorithm.
        metrics: Names of the figure; the first that a run has is taken.
        larger_is_better: Whether larger is better; lower is, otherwise.
        curve: Column of `history.csv` that tells how learning went.
        where: Columns and their values that rows of that curve have, as text; None
            is the value of the last row.
    """

    title: str
    metrics: tuple[str, ...]
    larger_is_better: bool
    curve: str
    where: tuple[tuple[str, str | None], ...] = ()


SCORES = {
    "mlp": Score("Multilayer perceptron", ("test_accuracy",), True, "val_loss"),
    "cnn": Score("Convolutional network", ("test_accuracy",), True, "accuracy"),
    "rnn": Score("Simple recurrent network", ("test_mae",), False, "val_loss"),
    "lstm": Score("LSTM", ("bits_per_char",), False, "val_bits_per_char"),
    "gru": Score("GRU", ("test_accuracy",), True, "accuracy"),
    "transformer": Score("GPT", ("bits_per_char",), False, "val_bits_per_char"),
    "translation": Score(
        "Transformer, encoder and decoder", ("exact_match",), True, "val_loss"
    ),
    "bert": Score("BERT", ("test_accuracy",), True, "loss", (("labels", None),)),
    "autoencoder": Score("Autoencoder", ("reconstruction_mse",), False, "val_loss"),
    "gan": Score(
        "Generative adversarial network", ("frechet_distance",), False, "generator_loss"
    ),
    "dbn": Score(
        "Deep belief network",
        ("test_accuracy",),
        True,
        "reconstruction_error",
        (("rbm", "1"),),
    ),
    "capsnet": Score("Capsule network", ("test_accuracy",), True, "accuracy"),
    "q_learning": Score("Q-learning", ("policy_value",), True, "policy_value"),
    "dqn": Score("Deep Q-network", ("eval_return",), True, "return"),
    "ppo": Score("Proximal policy optimization", ("eval_return",), True, "return"),
    "actor_critic": Score("Actor-critic (A2C)", ("eval_return",), True, "return"),
    "a3c": Score("Asynchronous actor-critic", ("eval_return",), True, "return"),
}

# Of a figure that isn't above, by how its name ends: smaller is better.
LOWER_IS_BETTER: tuple[str, ...] = (
    *("loss", "error", "mae", "mse", "rmse", "distance"),
    *("bits_per_char", "perplexity", "seconds", "elbo"),
)

# Of a recipe that isn't above: the first of these columns that `history.csv` has.
CURVES = ("return", "val_accuracy", "accuracy", "val_loss", "loss")


@dataclass(frozen=True)
class Reference:
    """A published figure, for runs whose argument has one of the values.

    Args:
        figure: As it was published, with its spread.
        source: Who published it, and under which conditions it was made.
        argument: Name of an argument of the recipe.
        values: Values of it, or how they begin: `CartPole` for `CartPole-v1`.
    """

    figure: str
    source: str
    argument: str
    values: tuple[str, ...]


DIGITS = ("mnist",)  # mnist_5k, too: fewer digits, so harder
ZOO = "RL Baselines3 Zoo"
REFERENCES = {
    "cnn": [Reference("0.992", "Keras' example, 60,000 digits", "dataset", DIGITS)],
    "dbn": [
        Reference("0.9875", "Hinton et al. 2006, 60,000 digits", "dataset", DIGITS),
        Reference(
            "0.94",
            "scikit-learn's example, an easier split",
            "dataset",
            ("nudged_digits",),
        ),
    ],
    "capsnet": [
        Reference("0.9975", "Sabour et al. 2017, 60,000 digits", "dataset", DIGITS)
    ],
    "dqn": [
        Reference(
            "488.7 ± 16.1 (PyTorch), 498.4 ± 2.3 (JAX)",
            "CleanRL, 500,000 steps",
            "env",
            ("CartPole",),
        ),
        Reference("500", f"{ZOO}, 50,000 steps", "env", ("CartPole",)),
        Reference("-76.6", ZOO, "env", ("Acrobot",)),
        Reference("154 ± 79", ZOO, "env", ("LunarLander-",)),
    ],
    "ppo": [
        Reference("490 ± 6", "CleanRL, 500,000 steps", "env", ("CartPole",)),
        Reference("500", f"{ZOO}, 100,000 steps", "env", ("CartPole",)),
        Reference("-73.5", ZOO, "env", ("Acrobot",)),
        Reference("242 ± 32", ZOO, "env", ("LunarLander-",)),
        Reference("-172 ± 104", ZOO, "env", ("Pendulum",)),
        Reference("1,443 ± 46", "CleanRL, 1M steps", "env", ("HalfCheetah",)),
        Reference("5,819 ± 664", f"{ZOO}, 1M steps", "env", ("HalfCheetah",)),
    ],
    "actor_critic": [
        Reference("500", ZOO, "env", ("CartPole",)),
        Reference("-83.4", ZOO, "env", ("Acrobot",)),
        Reference("156", ZOO, "env", ("LunarLander-",)),
    ],
}


# Baselines that are bounds, which nothing can be better than: no "best baseline".
BOUNDS = ("optimal_", "real_")


def score_of(recipe: str, figures: Iterable[str]) -> Score:
    """Returns the main score of a recipe whose runs have these figures.

    A recipe that isn't in the table, or has none of its figures, is judged by its
    first figure.
    """
    names = list(figures)
    known = SCORES.get(recipe)
    present = [name for name in known.metrics if name in names] if known else []
    if known and (present or not names):
        first = (present or list(known.metrics))[:1]
        return Score(
            known.title, tuple(first), known.larger_is_better, known.curve, known.where
        )
    metric = names[0] if names else ""
    return Score(
        title=known.title if known else recipe,
        metrics=(metric,),
        larger_is_better=not f"_{metric}".endswith(
            tuple(f"_{word}" for word in LOWER_IS_BETTER)
        ),
        curve=known.curve if known else "",
        where=known.where if known else (),
    )


def references(recipe: str, config: Mapping[str, Any]) -> list[Reference]:
    """Returns the published figures for a run with these arguments."""
    return [
        reference
        for reference in REFERENCES.get(recipe, [])
        if str(config.get(reference.argument)).startswith(reference.values)
    ]
