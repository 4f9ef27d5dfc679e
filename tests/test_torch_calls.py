import keras
import numpy as np
import pytest
from keras import ops

import kit
from kit.engines import torch_calls

if keras.backend.backend() != "torch":
    pytest.skip("PyTorch's graphs only", allow_module_level=True)

import torch
from torch.fx.experimental.proxy_tensor import make_fx


def record(fn, *args):
    """The graph of `fn` before and after."""
    module = make_fx(fn)(*args)
    before = make_fx(fn)(*args)
    for node, arg in zip(module.graph.find_nodes(op="placeholder"), args, strict=True):
        node.meta["val"] = torch.empty_like(arg, device="meta")
    torch_calls.hold_numbers(module)
    torch_calls.call_directly(module)
    module.graph.lint()
    module.recompile()
    return before, module


def operators(module):
    """What is still called the long way."""
    return {
        str(node.target)
        for node in module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    }


FLOATS = torch.linspace(-3, 3, 12).reshape(3, 4)
INTEGERS = torch.tensor([[-(2**31), -1, 0], [1, 77, 2**31 - 1]], dtype=torch.int32)


@pytest.mark.parametrize(
    "fn, x",
    [
        (lambda x: (x * 0.1, x + 1, x - 1e-8, x / 3, 2 / x, 1 - x), FLOATS),
        (lambda x: (x > 0.3, x >= 1, x < 0.1, x <= 0, x == 3, x != 3), FLOATS),
        (lambda x: (x + 2, x * 3, x - 7, x == -1, x > 0), INTEGERS),
        (lambda x: (x << 5, x >> 3, x & 255, x | 4, x ^ 0x1BD11BDA), INTEGERS),
        (lambda x: (x / 2, x + 0.5, x * 0.1), INTEGERS),  # become floats
        (
            lambda x: (x * 0.1 + 1.0, x > 0.3),
            torch.linspace(-3, 3, 999, dtype=torch.bfloat16),
        ),
        (lambda x: (x * 0.1 + 1.0, x > 0.3), FLOATS.to(torch.float64)),
        (lambda x: (x * 0.0, x * -0.0, x * 0.0), FLOATS),
        (lambda x: (x * float("inf"), x + float("nan")), FLOATS),
        (lambda x: (x.sum(0), x.sum(), x.mean(1, keepdim=True)), FLOATS),
        (lambda x: (x.to(torch.int32), x.t(), x[1], x[:, 1:3], x.amax(0)), FLOATS),
        (lambda x: (torch.cat([x, x]), torch.stack([x, x]), x.clone()), FLOATS),
        (lambda x: torch._foreach_mul([x, x + 1], [x, x]), FLOATS),
        (lambda x: (torch.addmm(x[0], x.t(), x), x.softmax(-1)), FLOATS[:, :3]),
        (lambda x: (x.clone().mul_(2), x.clone().masked_fill_(x > 0, 1.0)), FLOATS),
        (lambda x: (x.sort(stable=True)[1], x.argmax(-1), x.clamp(-1, 1)), FLOATS),
        (lambda x: (torch.zeros(3), torch.arange(4) * 2.5, x.new_ones(2)), FLOATS),
    ],
)
def test_values_stay_the_same_to_the_last_bit(fn, x):
    before, after = record(fn, x)
    for a, b in zip(before(x), after(x), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
        np.testing.assert_array_equal(
            a.to(torch.float64).numpy().view("uint64"),
            b.to(torch.float64).numpy().view("uint64"),
        )


def test_numbers_are_held_once_and_calls_are_direct():
    before, after = record(lambda x: (x * 0.5 + 1.0).tanh() * 0.5, FLOATS)
    assert len(operators(before)) == 3 and not operators(after)
    assert len(list(after.graph.find_nodes(op="get_attr"))) == 2
    assert not any(
        isinstance(argument, float)
        for node in after.graph.find_nodes(op="call_function", target=torch.mul)
        for argument in node.args
    )


def test_what_does_something_else_stays(monkeypatch):
    """A function of an operator's name that doesn't come down to it alone."""
    monkeypatch.setattr(torch_calls, "_functions", {})
    monkeypatch.setattr(torch, "exp", torch.sin)
    _, after = record(lambda x: torch.ops.aten.exp.default(x), FLOATS)
    assert operators(after) == {"aten.exp.default"}
    np.testing.assert_array_equal(after(FLOATS), FLOATS.exp())
    # `to` copies only where something changes.
    _, after = record(lambda x: torch.ops.aten._to_copy.default(x), FLOATS)
    assert operators(after) == {"aten._to_copy.default"}


def test_arguments_without_an_example_stay():
    module = make_fx(lambda x: x.exp())(FLOATS)
    for node in module.graph.nodes:
        node.meta.clear()
    torch_calls.hold_numbers(module)
    torch_calls.call_directly(module)
    assert operators(module) == {"aten.exp.default"}


def test_compiled_programs_call_directly():
    """Also where a trace is under way around the one of a loop's body."""
    graphs = []
    whole = torch_calls.call_directly

    def note(module):
        whole(module)
        graphs.append(module)

    x = np.ones(3, "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_calls, "call_directly", note)
        turn = lambda carry, _: (ops.tanh(carry * 0.5) + 0.25, None)  # noqa: E731
        result, _ = kit.compiled(lambda x: kit.scan(turn, x, length=3))(x)
    for _ in range(3):
        x = np.tanh(x * 0.5) + 0.25
    np.testing.assert_allclose(ops.convert_to_numpy(result), x, rtol=1e-6)
    body = graphs[0]
    assert {torch.mul, torch.tanh, torch.add} <= {n.target for n in body.graph.nodes}
    assert not operators(body)


@pytest.mark.parametrize("length", [0.1, 100.0])
def test_gradients_are_cut_together_as_keras_does(length):
    from keras.src.optimizers import base_optimizer

    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape).astype("float32") for shape in [(3, 4), (5,), ()]]
    cut = base_optimizer.clip_by_global_norm

    def cut_in_trace(*x):
        assert base_optimizer.clip_by_global_norm.__wrapped__ is cut
        return base_optimizer.clip_by_global_norm([x[0], None, *x[1:]], length)

    infinite = [values[0] * np.inf, *values[1:]]  # finite ones become NaN, too
    for case in (values, [v * 0 for v in values], infinite):
        case = [ops.convert_to_tensor(v) for v in case]
        expected = cut([case[0], None, *case[1:]], length)
        result = kit.compiled(cut_in_trace)(*case)
        assert result[1] is None
        for a, b in zip(expected, result, strict=True):
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_number_in_the_code_is_not_what_has_its_value_at_first():
    @kit.compiled
    def fn(x, a):
        turn = lambda c, _: (ops.maximum(c + a, 2.0), None)  # noqa: E731
        return kit.scan(turn, x, length=1)[0]

    for a, expected in [(2.0, 2.0), (-1.0, 2.0), (5.0, 5.0)]:
        assert float(fn(0.0, a)) == expected
