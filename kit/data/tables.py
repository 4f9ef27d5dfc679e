"""Tables of numbers and texts, as rows of numbers.

A column of numbers stays as it is. A column of texts becomes one column of 0 and 1 for
each of its texts ("one-hot"). `Table.columns` holds what is needed to make the same
rows of new data: write it beside a saved model.

Shapes: N rows, C columns of numbers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kit import checks

MAX_CLASSES = 20  # a target with more different numbers is a quantity
MAX_TEXTS = 50  # different ones in a column

ACCEPTED = {
    "csv": checks.PATH,
    "target": checks.TEXT,
    "frame": checks.instance(pd.DataFrame, what="a pandas.DataFrame"),
    "y": checks.array("N"),
    "classes": checks.sequence(checks.TEXT),
    "columns": checks.instance(Mapping, what="a mapping, `Table.columns`"),
}


class Table(NamedTuple):
    """The rows of a table, as they are and as numbers.

    Attributes:
        frame: The columns as they are.
        x: The rows as numbers, float32, `(N, C)`.
        y: Targets `(N,)`: classes 0, 1, ... as int32, or quantities as float32.
        columns: For each column of `frame`, its different texts; an empty list for a
            column of numbers.
        classes: Names of the classes; empty if `y` is a quantity.
        target: Name of what is predicted.
    """

    frame: pd.DataFrame
    x: np.ndarray
    y: np.ndarray
    columns: dict[str, list[str]]
    classes: tuple[str, ...]
    target: str


def read_table(csv: str | Path, target: str) -> Table:
    """Reads a CSV file whose first row names the columns.

    If the target is a text, or a whole number with up to 20 different values, these are
    classes, in alphabetic or numeric order. But of two classes, the rarer one is class
    1, which is usually the one that is looked for. Other numbers are a quantity.

    Args:
        csv: The file.
        target: Name of the column to predict.

    Returns:
        The table; its columns are all others of the file.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the file isn't a table, has no such column, or has gaps.
    """
    checks.check("read_table", locals(), ACCEPTED)
    try:
        frame = pd.read_csv(csv)
    except (OSError, ValueError) as error:  # those of pandas are ValueErrors
        raise ValueError(
            f"read_table: `csv` must be a CSV file, received {str(csv)!r}: {error}"
        ) from error
    if target not in frame:
        names = ", ".join(map(repr, frame.columns))
        raise ValueError(
            f"read_table: `target` must be a column of {str(csv)!r}, one of {names}; "
            f"received {target!r}."
        )
    y = frame.pop(target)
    if y.isna().any():
        raise ValueError(
            f"read_table: `target` must be a column without gaps; {target!r} has no "
            f"value in row {int(y.isna().to_numpy().argmax())} (the first one is row "
            "0). Leave such rows out."
        )
    values, codes = np.unique(y.to_numpy(), return_inverse=True)
    if pd.api.types.is_numeric_dtype(y) and not pd.api.types.is_bool_dtype(y):
        whole = not np.any(values % 1)
        if not whole or len(values) > MAX_CLASSES:
            return make_table(frame, y, target=target)
    if len(values) < 2:
        raise ValueError(
            f"read_table: `target` must be a column with different values; {target!r} "
            f"is always {values[0]!r}."
        )
    if len(values) == 2 and codes.mean() > 0.5:
        values, codes = values[::-1], 1 - codes
    return make_table(frame, codes, tuple(str(x) for x in values), target)


def make_table(
    frame: pd.DataFrame, y: Any, classes: Sequence[str] = (), target: str = "target"
) -> Table:
    """Returns a table of a data frame and targets.

    Args:
        frame: Columns of numbers and of texts, without gaps.
        y: Targets `(N,)`: classes 0, 1, ... or quantities.
        classes: Names of the classes. Defaults to none, for quantities.
        target: Name of what is predicted. Defaults to `"target"`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is a gap, or a column of too many different texts.
    """
    checks.check("make_table", locals(), ACCEPTED)
    frame = frame.reset_index(drop=True)
    y = np.asarray(y, "int32" if classes else "float32")
    if y.shape != (len(frame),) or not len(frame) or not len(frame.columns):
        raise ValueError(
            "make_table: `frame` must have a row for each entry of `y`, and a column "
            f"or more, received shapes {frame.shape} and {y.shape}."
        )
    low, high = y.min(), y.max()
    if (
        not np.isfinite([low, high]).all()
        or classes
        and not 0 <= low <= high < len(classes)
    ):
        kind = f"classes from 0 to {len(classes) - 1}" if classes else "finite numbers"
        raise ValueError(
            f"make_table: `y` must hold {kind}, received values from {low} to {high}."
        )
    columns = {}
    _check_gaps(frame)
    for name in frame.columns:
        is_number = pd.api.types.is_numeric_dtype(frame[name])
        columns[str(name)] = [] if is_number else sorted(set(map(str, frame[name])))
        if len(columns[str(name)]) > MAX_TEXTS:
            raise ValueError(
                f"make_table: `frame` must have columns of up to {MAX_TEXTS} different "
                f"texts; {name!r} has {len(columns[str(name)])}. Leave it out, or turn "
                "it into numbers."
            )
    frame.columns = list(columns)
    return Table(frame, encode(frame, columns), y, columns, tuple(classes), target)


def encode(frame: pd.DataFrame, columns: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Returns the rows of a data frame as numbers, `(N, C)`, float32.

    A text that isn't in `columns` becomes zeros.

    Args:
        frame: Rows with all of these columns; others are ignored.
        columns: Those of a `Table`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a column is missing, or an entry isn't a finite number where
            there must be one.

    Example:

    ```python
    frame = pd.DataFrame({"age": [31, 52], "home": ["rent", "own"]})
    encode(frame, {"age": [], "home": ["own", "rent"]})  # [[31, 0, 1], [52, 1, 0]]
    ```
    """
    checks.check("encode", locals(), ACCEPTED)
    missing = [name for name in columns if name not in frame]
    if missing or not columns:
        raise ValueError(
            f"encode: `frame` must have the columns {list(columns)}, received "
            f"{list(map(str, frame.columns))}."
        )
    parts = []
    _check_gaps(frame[list(columns)])
    for name, texts in columns.items():
        values = frame[name]
        if texts:
            parts.append(values.to_numpy(str)[:, None] == np.array(texts))
            continue
        try:
            numbers = values.to_numpy("float32")
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"encode: `frame` must have numbers in column {name!r}: {error}"
            ) from error
        if not np.isfinite(numbers).all():
            row = int(np.isfinite(numbers).argmin())
            raise ValueError(
                f"The table has an infinite number in column {name!r}, row {row} (the "
                "first one is row 0): replace it, or leave such rows out."
            )
        parts.append(numbers[:, None])
    return np.concatenate(parts, axis=1).astype("float32")


def _check_gaps(frame: pd.DataFrame) -> None:
    """Raises a ValueError that names all columns with gaps."""
    gaps = frame.isna()
    found = [
        f"column {name!r}, row {int(gap.argmax())} ({gap.sum()} in all)"
        for name, gap in zip(frame.columns, gaps.to_numpy().T, strict=True)
        if gap.any()
    ]
    if found:
        raise ValueError(
            f"The table has no value in {'; '.join(found)}. Row 0 is line 2 of a CSV "
            "file. Fill gaps in, or leave such rows or columns out."
        )
