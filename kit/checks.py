"""Checks arguments, and raises errors that name what is accepted.

Each file has a table of its arguments by name, and each function one line:

    ACCEPTED = {"num_outputs": SIZE, "units": SIZES, "dropout": SHARE}

    def mlp(num_outputs, units=(64,), dropout=0.0):
        check("mlp", locals(), ACCEPTED)

The first invalid argument raises a `TypeError` (wrong type) or a `ValueError` (out of
range), before anything is computed:

    mlp: `dropout` must be a number in [0, 1), received nan.

Letters name the axes of arrays. Axes with the same letter must have the same length:

    ACCEPTED = {"z_mean": array("B L"), "z_log_var": array("B L")}
"""

import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

Fault = type[TypeError] | type[ValueError] | None


def check(
    where: Any, arguments: Mapping[str, Any], accepted: Mapping[str, "Kind"]
) -> None:
    """Raises an error if an argument isn't of its kind.

    Args:
        where: Name of the function or class, or an object of the class; `""` if the
            error needn't name it.
        arguments: Values by name, such as `locals()`. Names that aren't in `accepted`
            are ignored.
        accepted: The kind of each argument; it may have more names.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value has the right type, but isn't accepted.
    """
    sizes: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, value in arguments.items():
        kind = accepted.get(name)
        if kind is None:
            continue
        fault = kind.fault(value, sizes)
        if fault is None:
            if kind.axes:
                sources = {axis: name for axis in sizes} | sources
            continue
        where = where if isinstance(where, str) else type(where).__name__
        shared = [axis for axis in kind.axes if axis in sources]
        known = ", ".join(f"{x}={sizes[x]} as in `{sources[x]}`" for x in shared)
        known = f" with {known}" if known else ""
        prefix = f"{where}: " if where else ""
        raise fault(
            f"{prefix}`{name}` must be {kind.accepted}{known}, received "
            f"{_describe(value, fault)}."
        )


class Kind:
    """The set of values that an argument accepts. `kind | None` also accepts `None`.

    Args:
        accepted: Description of the accepted values: "an integer in [1, 10]".
        fault: Function of a value and of the axes' sizes by letter, to which it may
            add. Returns `None` if the value is accepted, else the type of the error.
        is_real: Whether it is a range of real numbers.
        axes: Names of the axes that other arrays may share.
    """

    def __init__(
        self,
        accepted: str,
        fault: Callable[[Any, dict[str, Any]], Fault],
        is_real: bool = False,
        axes: tuple[str, ...] = (),
    ):
        self.accepted = accepted
        self.fault = fault
        self.is_real = is_real
        self.axes = axes

    def __or__(self, other: Any) -> "Kind":
        """Returns the kind that accepts the values of both kinds."""
        second = other if isinstance(other, Kind) else instance(other or type(None))

        def fault(value, sizes):
            faults = [kind.fault(value, sizes) for kind in (self, second)]
            if None in faults:
                return None
            return ValueError if ValueError in faults else TypeError

        accepted = f"{self.accepted} or {second.accepted}"
        return Kind(accepted, fault, self.is_real, self.axes + second.axes)


# --- Kinds --------------------------------------------------------------------


def integer(interval: str) -> Kind:
    """Returns the kind of integers in an interval, such as `"[1, 2**31)"`."""
    fits = _interval(interval)

    def fault(value, sizes):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            return TypeError
        return None if fits(int(value)) else ValueError

    return Kind(f"an integer in {interval}", fault)


def real(interval: str) -> Kind:
    """Returns the kind of numbers in an interval, such as `"[0, 1)"`; no NaN."""
    fits = _interval(interval)

    def fault(value, sizes):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return TypeError
        return None if fits(value) else ValueError

    return Kind(f"a number in {interval}", fault, is_real=True)


def one_of(*names: str) -> Kind:
    """Returns the kind of strings that are one of these."""

    def fault(value, sizes):
        if not isinstance(value, str):
            return TypeError
        return None if value in names else ValueError

    return Kind(f"one of {', '.join(map(repr, names))}", fault)


def instance(*types: type, what: str = "") -> Kind:
    """Returns the kind of objects of these types.

    Args:
        *types: Classes.
        what: Their name in the error. Defaults to the names of the classes.
    """
    what = what or " or ".join(map(_name_type, types))

    def fault(value, sizes):
        return None if isinstance(value, types) else TypeError

    return Kind(what, fault)


def sequence(kind: Kind, least: int = 0, length: int | None = None) -> Kind:
    """Returns the kind of sequences whose elements are of a kind.

    Args:
        kind: Kind of each element.
        least: Smallest accepted length. Defaults to 0.
        length: The only accepted length. Defaults to `None`: any length.
    """

    def fault(value, sizes):
        listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        if not listed and not (isinstance(value, np.ndarray) and value.ndim == 1):
            return TypeError
        faults = [kind.fault(x, sizes) for x in value]
        if TypeError in faults:
            return TypeError
        fits = len(value) >= least and length in (None, len(value))
        return None if fits and not any(faults) else ValueError

    number = f"{least} or more" if least else "any number"
    number = number if length is None else f"{length}"
    return Kind(f"a sequence of {number}, each {kind.accepted}", fault)


def array(axes: str = "...", dtype: str = "numbers", interval: str = "") -> Kind:
    """Returns the kind of arrays and tensors.

    Values are checked only in NumPy arrays, lists and numbers, not in tensors, whose
    values may not exist yet in a compiled function.

    Args:
        axes: A letter or number for each axis, such as `"B 3"`. At the end, `"..."`
            stands for any further axes, `"*E"` for further axes that all arrays share.
            `""` stands for a number. Defaults to `"..."`.
        dtype: `"numbers"`, including booleans, `"integers"` or `"floats"`. Defaults to
            `"numbers"`.
        interval: Interval of all values, such as `"[0, 1]"`. Defaults to any values,
            including NaN and infinity.
    """
    names = axes.split()
    fits = _interval(interval) if interval else None
    single = {"integers": "an integer", "floats": "a float"}.get(dtype, "a number")
    accepted = {"": single, "...": f"{single} or an array of {dtype}"}.get(
        axes,
        f"an array of {dtype} of shape ({', '.join(names)}{',' * (len(names) == 1)})",
    )
    accepted += f" in {interval}" if interval else ""

    def fault(value, sizes):
        if names not in ([], ["..."]) and isinstance(value, numbers.Number):
            return TypeError
        try:
            shape, kind = _shape_and_dtype(value)
        except (TypeError, ValueError, AttributeError):
            return TypeError
        is_kind = {"integers": "int" in kind, "floats": "float" in kind}
        if not is_kind.get(dtype, kind == "bool" or any(is_kind.values())):
            return TypeError
        if shape is None:
            return None
        if not _match_axes(names, shape, sizes):
            return ValueError
        if fits is None or not has_values(value):
            return None
        values = np.asarray(value).reshape(-1)
        if not values.size:
            return ValueError
        low, high = values.min(), values.max()  # NaN, if there is one
        return None if fits(low) and fits(high) else ValueError

    return Kind(
        accepted, fault, axes=tuple(x for x in names if x != "..." and not x.isdigit())
    )


def _from_keras(what: str, get: Callable[[Any], Any]) -> Kind:
    """Returns the kind of Keras objects, given by name, object or configuration."""

    def fault(value, sizes):
        if not isinstance(value, str | dict) and not callable(value):
            is_object = isinstance(value, keras.optimizers.Optimizer)
            return None if is_object else TypeError
        try:
            get(value)
        except (ValueError, TypeError, KeyError, AttributeError):
            return ValueError
        return None

    return Kind(f"the name of a Keras {what}, or such an object", fault)


# --- Helpers ------------------------------------------------------------------


def _interval(text: str) -> Callable[[Any], bool]:
    """Returns a function: whether a number is in an interval such as `"[0, 2**31)"`."""
    low, high = (_number(x) for x in text[1:-1].split(","))
    with_low, with_high = text[0] == "[", text[-1] == "]"

    def fits(x):
        above = low <= x if with_low else low < x
        return bool(above and (x <= high if with_high else x < high))

    return fits


def _number(text: str) -> float:
    base, _, power = text.strip().lstrip("-").partition("**")
    value = int(base) ** int(power) if power else float(base)
    return -value if text.strip().startswith("-") else value


def has_values(value: Any) -> bool:
    """Whether the values of an array can be read at no cost."""
    return isinstance(value, np.ndarray | np.generic | list | tuple | int | float)


def _shape_and_dtype(value):
    """Returns an array's shape, `None` if unknown, and the name of its dtype."""
    if isinstance(value, np.ndarray | np.generic):
        return value.shape, value.dtype.name
    if isinstance(value, list | tuple):
        leaves = keras.tree.flatten(value)
        if any(hasattr(x, "shape") and not has_values(x) for x in leaves):
            return None, "float32"  # a list of tensors, which Keras stacks
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        value = np.asarray(value)
        return value.shape, value.dtype.name
    if value.shape is None or getattr(value.shape, "rank", 0) is None:
        return None, keras.backend.standardize_dtype(value.dtype)
    return tuple(value.shape), keras.backend.standardize_dtype(value.dtype)


def _match_axes(names, shape, sizes):
    """Returns whether a shape fits; adds the lengths of its axes to `sizes`."""
    if names and names[-1][0] in ".*":
        *names, last = names
        shape, rest = shape[: len(names)], shape[len(names) :]
        if last[0] == "*" and None not in rest and sizes.setdefault(last, rest) != rest:
            return False
    if len(names) != len(shape):
        return False
    for name, size in zip(names, shape, strict=True):
        if size is None:
            continue
        expected = int(name) if name.isdigit() else sizes.get(name, size)
        if size != expected or not size:
            return False
    found = zip(names, shape, strict=True)
    sizes.update((name, size) for name, size in found if size and not name.isdigit())
    return True


def _name_type(kind):
    if kind is type(None):
        return "None"
    package = kind.__module__.partition(".")[0]
    package = "" if package == "builtins" else f"{package}."
    return f"a {package}{kind.__name__}"


def _describe(value, fault):
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None and len(tuple(shape)):
        text = f"an array of shape {tuple(shape)} and dtype {dtype}"
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.size:
            text += f", values from {value.min()} to {value.max()}"
        return text
    text = repr(value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return f"{text} of type {type(value).__name__}" if fault is TypeError else text


def _find_dtype(value, sizes):
    """Returns the fault of a dtype: Keras must know its name or object."""
    if value is None or isinstance(value, list | tuple | np.ndarray | numbers.Number):
        return TypeError
    try:
        keras.backend.standardize_dtype(value)
    except Exception:  # each backend raises its own type
        return ValueError if isinstance(value, str) else TypeError
    return None


# --- Named kinds ----------------------------------------------------------------

BOOL = instance(bool, np.bool_, what="True or False")
SIZE = integer("[1, 2**31)")
SIZES = sequence(SIZE)
COUNT = integer("[0, 2**31)")
INTEGER = integer("[-2**31, 2**31)")
NUM_LAYERS = integer("[1, 10000]")  # each takes time to build
SEED = integer("[0, 2**32)")
SHARE = real("[0, 1)")
FRACTION = real("[0, 1]")
POSITIVE = real("(0, 1e20)")
WEIGHT = real("[0, 1e20)")
FINITE = real("(-1e20, 1e20)")
TEXT = instance(str, what="a string")
DTYPE = Kind("the name of a dtype", _find_dtype)
# The argument `dtype` of Keras' layers.
LAYER_DTYPE = DTYPE | instance(keras.DTypePolicy) | instance(dict) | None
PATH = instance(str, os.PathLike, what="a path, as a string or pathlib.Path")
FUNCTION = Kind("a function", lambda value, _: None if callable(value) else TypeError)
MODEL = instance(keras.Model)
VERBOSE = integer("[0, 2]") | BOOL | one_of("auto")
LAYER = instance(keras.layers.Layer)
ACTIVATION = _from_keras("activation", keras.activations.get) | None
INITIALIZER = _from_keras("initializer", keras.initializers.get)
OPTIMIZER = _from_keras("optimizer", keras.optimizers.get)
LOSS = _from_keras("loss", keras.losses.get)
ARRAY = array()
IMAGE = sequence(SIZE, length=3)
# A shape with None for axes of any length.
OPEN_SHAPE = sequence(SIZE | None)
