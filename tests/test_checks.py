"""What arguments may be, and what the errors say."""

import math
import re

import keras
import numpy as np
import pytest
from keras import ops

import kit
from kit import checks


def message(kind, value, **others):
    """The error about argument `x`, which comes after others."""
    kinds = {name: kind for name, (kind, _) in others.items()}
    values = {name: value for name, (_, value) in others.items()}
    with pytest.raises((TypeError, ValueError)) as caught:
        checks.check("f", {**values, "x": value}, {**kinds, "x": kind})
    return caught.type, str(caught.value)


def accepts(kind, value):
    checks.check("f", {"x": value}, {"x": kind})
    return True


@pytest.mark.parametrize(
    ("kind", "value", "error", "text"),
    [
        (checks.SIZE, 0, ValueError, "an integer in [1, 2**31), received 0."),
        (checks.SIZE, 2**31, ValueError, "received 2147483648."),
        (checks.SIZE, 1.0, TypeError, "received 1.0 of type float."),
        (checks.SIZE, True, TypeError, "received True of type bool."),
        (checks.SHARE, 1.0, ValueError, "a number in [0, 1), received 1.0."),
        (checks.SHARE, math.nan, ValueError, "a number in [0, 1), received nan."),
        (checks.POSITIVE, 0, ValueError, "a number in (0, 1e20), received 0."),
        (checks.FINITE, math.inf, ValueError, "received inf."),
        (checks.BOOL, 1, TypeError, "True or False, received 1 of type int."),
        (checks.one_of("a", "b"), "c", ValueError, "one of 'a', 'b', received 'c'."),
        (checks.one_of("a"), 1, TypeError, "one of 'a', received 1 of type int."),
        (checks.SIZE | None, "1", TypeError, "in [1, 2**31) or None, received '1'"),
        (checks.SIZE | None, -1, ValueError, "[1, 2**31) or None, received -1."),
        (checks.SIZES, 3, TypeError, "a sequence of any number, each an integer in"),
        (checks.SIZES, "3", TypeError, "received '3' of type str."),
        (checks.SIZES, (1, 0), ValueError, "received (1, 0)."),
        (checks.SIZES, (1, "2"), TypeError, "received (1, '2') of type tuple."),
        (checks.IMAGE, (8, 8), ValueError, "a sequence of 3, each an integer in"),
        (checks.MODEL, "m", TypeError, "a keras.Model, received 'm' of type str."),
        (checks.ACTIVATION, "bogus", ValueError, "the name of a Keras activation"),
        (checks.ACTIVATION, 1, TypeError, "received 1 of type int."),
        (checks.INITIALIZER, None, TypeError, "a Keras initializer"),
        (checks.OPTIMIZER, "bogus", ValueError, "a Keras optimizer"),
        (checks.LOSS, "bogus", ValueError, "a Keras loss"),
        (checks.DTYPE, "bogus", ValueError, "the name of a dtype, received 'bogus'."),
        (checks.FUNCTION, "f", TypeError, "a function, received 'f' of type str."),
        (checks.array("B L"), np.ones(3), ValueError, "of shape (B, L), received an"),
        (checks.array("B"), [], ValueError, "of shape (B,), received []."),
        (checks.array("B"), "bogus", TypeError, "received 'bogus' of type str."),
        (checks.array("B", "integers"), [1.5], TypeError, "an array of integers of"),
        (checks.array("B", "floats"), [1], TypeError, "an array of floats of shape"),
        (checks.array("", interval="[0, 1]"), 2, ValueError, "a number in [0, 1]"),
        (checks.array(interval="[0, 1)"), [0.5, 1], ValueError, "received [0.5, 1]."),
        (checks.array(interval="[0, 1)"), [0.5, math.nan], ValueError, "nan]."),
    ],
)
def test_errors_say_what_is_accepted_and_what_was_received(kind, value, error, text):
    found, said = message(kind, value)
    assert found is error
    assert said.startswith("f: `x` must be ")
    assert text in said


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (checks.SIZE, np.int64(3)),
        (checks.SHARE, np.float32(0.5)),
        (checks.SHARE, 0),
        (checks.SIZE | None, None),
        (checks.SIZES, []),
        (checks.SIZES, np.array([1, 2])),
        (checks.BOOL, np.True_),
        (checks.ACTIVATION, None),
        (checks.ACTIVATION, ops.tanh),
        (checks.INITIALIZER, keras.initializers.Zeros()),
        (checks.OPTIMIZER, keras.optimizers.SGD()),
        (checks.array("B 2"), np.ones((3, 2), "float16")),
        (checks.array("B ..."), keras.KerasTensor((None, 3))),
        (checks.array("", interval="[0, 1]"), np.float32(1)),
        (checks.array(), keras.Variable([1.0])),
    ],
)
def test_accepted(kind, value):
    assert accepts(kind, value)


def test_axes_of_one_letter_are_equally_long():
    first = {"y": (checks.array("B L"), np.ones((3, 2)))}
    _, said = message(checks.array("B L"), np.ones((3, 4)), **first)
    assert "of shape (B, L) with B=3 as in `y`, L=2 as in `y`, received" in said
    assert re.search(r"shape \(3, 4\) and dtype float64", said)
    rest = {"y": (checks.array("*E"), np.ones(2))}
    _, said = message(checks.array("B *E"), np.ones((3, 4)), **rest)
    assert "of shape (B, *E) with *E=(2,) as in `y`, received" in said


def test_tensors_are_known_by_shape_and_dtype_also_in_a_program():
    kinds = {"x": checks.array("B 2", interval="[0, 1]")}

    @kit.compiled
    def double(x):
        checks.check("double", {"x": x}, kinds)
        return 2 * x

    assert ops.convert_to_numpy(double(np.ones((3, 2), "float32"))).sum() == 12
    with pytest.raises(ValueError, match=r"`x` must be an array of numbers .*\(B, 2\)"):
        double(np.ones((3, 3), "float32"))
    # Values of tensors aren't looked at: a program doesn't know them.
    assert accepts(kinds["x"], ops.convert_to_tensor(np.full((3, 2), 7.0)))


def test_lists_may_hold_tensors():
    assert accepts(checks.array("B"), [ops.ones(()), ops.ones(())])


def test_long_values_are_cut():
    _, said = message(checks.SIZE, "x" * 1000)
    assert len(said) < 200


def test_the_first_wrong_argument_is_named_before_anything_is_computed():
    with pytest.raises(ValueError, match="`num_outputs` must be"):
        kit.mlp((3,), 0, dropout=7.0)
