"""Reads a recipe's declaration for comparisons: its score, curve and published figures.

A recipe's score is the first metric in its `metrics.json`, unless it declares another
one above its `main`:

```python
COMPARISON = {
    "title": "Deep Q-network",
    "score": "eval_return",
    "larger_is_better": True,
    "curve": "return",
    "quick": "--total-timesteps 10000",
    "published": [("-76.6", "RL Baselines3 Zoo", {"env": "Acrobot"})],
}
```

The value is read without running the recipe: it must be a literal of strings, numbers,
Booleans, None, lists, tuples and dicts. All keys are optional:

- `title`: name of the algorithm.
- `place`: position in the report. Recipes with small numbers come first, recipes
  without one last.
- `score` and `larger_is_better`: the metric in `metrics.json` that is the recipe's
  score. The score of a run without it is its first metric.
- `curve`: column of `history.csv` with the learning curve.
- `curve_rows`: columns of `history.csv` and the value that rows of the curve have, as
  text; None is the value of the last row.
- `quick`: arguments of `compare --quick`, for about a minute on two cores: enough to
  see that everything works and to tell backends apart. The scores are lower than those
  of a full run.
- `published`: published figures. Each has the figure, with its spread; its source and
  conditions; and, if it doesn't apply to all runs, the recipe's arguments to which it
  applies. A string stands for every value that begins with it: `"Acrobot"` for
  `Acrobot-v1`.

`compare` stores the declaration in each run's `run.json`, where the report finds it
even if the recipe no longer exists. After a change, run `compare` again: it updates
`run.json` without repeating finished runs.
"""

import ast
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "COMPARISON"  # of the declaration, in a recipe
Comparison = dict[str, Any]

# The keys of a declaration: types of the value, and the same in words.
Keys = dict[str, tuple[tuple[type, ...], str]]
KEYS: Keys = {
    "title": ((str,), "a string"),
    "place": ((int,), "an integer"),
    "score": ((str,), "a string, the name of a figure in metrics.json"),
    "larger_is_better": ((bool,), "True or False"),
    "curve": ((str,), "a string, the name of a column in history.csv"),
    "curve_rows": ((dict,), "a dict of strings or None by column of history.csv"),
    "quick": ((str,), "a string of arguments as they are typed in a shell"),
    "published": ((list,), "a list"),
}

# If a recipe doesn't declare it: smaller is better for metrics that end in these names.
LOWER_IS_BETTER: tuple[str, ...] = (
    *("loss", "error", "mae", "mse", "rmse", "distance"),
    *("bits_per_char", "perplexity", "seconds", "elbo"),
)

# If a recipe declares no curve: the first of these columns in `history.csv`.
CURVES = ("return", "val_accuracy", "accuracy", "val_loss", "loss")

# Baselines that are bounds: no model can beat them, so none is the "best baseline".
BOUNDS = ("optimal_", "real_")


# --- Declarations -------------------------------------------------------------


def read_comparison(file: Path) -> Comparison:
    """Returns a recipe's declaration, without running it; empty if there is none.

    Raises:
        ValueError: If the declaration isn't a literal, or a key or value is wrong.
    """
    declared: Comparison = {}
    for node in ast.parse(file.read_text(encoding="utf-8"), str(file)).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and declares(node):
            value = node.value or ast.Constant(None)
            try:
                declared = ast.literal_eval(value)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{file}, line {node.lineno}: {NAME} must be a literal (strings, "
                    "numbers, Booleans, None, lists, tuples and dicts), as it is read "
                    f"without running the recipe, got {ast.unparse(value):.80}"
                ) from error
            try:
                check_comparison(declared)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
    return json.loads(json.dumps(declared))  # as run.json has it


def declares(node: ast.AST) -> bool:
    """Returns whether a statement is the declaration of a recipe."""
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return any(isinstance(x, ast.Name) and x.id == NAME for x in targets)


def check_comparison(declared: Any) -> None:
    """Raises ValueError for a declaration with a wrong key or value."""
    if not isinstance(declared, dict):
        raise ValueError(f"{NAME} must be a dict, got {declared!r}.")
    _check_keys(declared, KEYS, NAME)
    pair = [key for key in ("score", "larger_is_better") if key in declared]
    if len(pair) == 1:
        raise ValueError(
            f"{NAME} must have both 'score' and 'larger_is_better' or neither, got "
            f"{pair[0]!r} only."
        )
    rows = declared.get("curve_rows", {})
    _check_values(rows, f"{NAME}['curve_rows']", (str, type(None)), "a string or None")
    try:
        shlex.split(declared.get("quick", ""))
    except ValueError as error:
        raise ValueError(
            f"{NAME}['quick'] must be {KEYS['quick'][1]}, got {declared['quick']!r} "
            f"({error})."
        ) from error
    for i, entry in enumerate(declared.get("published", [])):
        name = f"{NAME}['published'][{i}]"
        parts = list(entry) if isinstance(entry, list | tuple) else []
        if [type(part) for part in parts] not in ([str, str], [str, str, dict]):
            raise ValueError(
                f"{name} must be a tuple of the figure and its source, both strings, "
                f"and perhaps a dict of arguments, got {entry!r}."
            )
        kinds = (str, int, float, bool)
        words = "a string, a number or a Boolean"
        for arguments in parts[2:]:
            _check_values(arguments, f"{name}[2]", kinds, words)


def _check_keys(given: Mapping[Any, Any], accepted: Keys, name: str) -> None:
    for key, value in given.items():
        if key not in accepted:
            raise ValueError(
                f"{name} has the unknown key {key!r}; accepted are "
                f"{', '.join(map(repr, accepted))}."
            )
        _check_value(value, f"{name}[{key!r}]", *accepted[key])


def _check_values(
    given: Mapping[Any, Any], name: str, kinds: tuple[type, ...], words: str
) -> None:
    for key, value in given.items():
        if not isinstance(key, str):
            raise ValueError(f"{name} must have strings as keys, got {key!r}.")
        _check_value(value, f"{name}[{key!r}]", kinds, words)


def _check_value(value: Any, name: str, kinds: tuple[type, ...], words: str) -> None:
    # In Python, a Boolean is an integer.
    known = bool in kinds if isinstance(value, bool) else isinstance(value, kinds)
    if not known:
        raise ValueError(f"{name} must be {words}, got {value!r}.")


# --- Scores -------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """The metric in `metrics.json` that is a recipe's score.

    Args:
        title: Name of the algorithm.
        metric: Name of the metric; empty if there is none.
        larger_is_better: Whether larger is better; otherwise smaller is.
    """

    title: str
    metric: str
    larger_is_better: bool


def score_of(recipe: str, declared: Comparison, figures: Iterable[str]) -> Score:
    """Returns the main score of a recipe whose runs have these metrics.

    If it declares none, or its metrics don't contain the declared one, the score is its
    first metric.

    Args:
        recipe: Name of the recipe.
        declared: Its declaration.
        figures: Names of metrics in `metrics.json`, in its order.
    """
    names = list(figures)
    title = declared.get("title", recipe)
    metric = declared.get("score", "")
    if metric and (metric in names or not names):
        return Score(title, metric, declared["larger_is_better"])
    metric = names[0] if names else ""
    endings = tuple(f"_{word}" for word in LOWER_IS_BETTER)
    return Score(title, metric, not f"_{metric}".endswith(endings))


def references(declared: Comparison, config: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the published figures that apply to a run with these arguments."""
    return [
        {"figure": figure, "source": source}
        for figure, source, *conditions in declared.get("published", [])
        if all(
            _is_meant(config.get(argument), value)
            for condition in conditions
            for argument, value in condition.items()
        )
    ]


def _is_meant(given: Any, declared: Any) -> bool:
    if isinstance(declared, str):
        return str(given).startswith(declared)
    return given == declared
