import operator

import keras
import numpy as np
import pytest
from keras import ops

import kit

if keras.backend.backend() != "torch":
    pytest.skip("PyTorch's graphs only", allow_module_level=True)

import torch
from torch import fx

from kit.engines import torch_nodes, torch_passes

aten = torch.ops.aten


class Hand:
    """A graph made by hand, with an example value for each node."""

    def __init__(self):
        self.graph = fx.Graph()
        self.values, self.variables, self.constants = [], {}, {}

    def input(self, *shape, dtype=torch.float32):
        value = torch.arange(1, 1 + int(np.prod(shape))).reshape(shape).to(dtype)
        return self._placeholder(value)

    def variable(self, *shape):
        node = self.input(*shape)
        self.variables[node] = keras.Variable(self.values[-1])
        return node

    def constant(self, value, dtype=torch.float32):
        node = self._placeholder(torch.tensor(value, dtype=dtype))
        self.constants[node] = self.values[-1]
        return node

    def _placeholder(self, value):
        node = self.graph.placeholder(f"input{len(self.values)}")
        node.meta["val"] = value.to("meta")
        self.values.append(value)
        return node

    def call(self, target, *args, **kwargs):
        node = self.graph.call_function(target, args, kwargs)
        examples = fx.map_arg((args, kwargs), lambda x: x.meta["val"])
        node.meta["val"] = target(*examples[0], **examples[1])
        return node

    def run(self):
        module = fx.GraphModule({}, self.graph)
        return module(*[x.clone() for x in self.values])

    def rewrite(self, rewrite, *outputs):
        """The calls that are left after a pass, and what they are given.

        The results must be the same to the last bit, also where inputs are changed.
        """
        self.graph.output(outputs)
        before = self.run()
        rewrite(torch_passes.Recording(self.graph, self.variables, self.constants))
        self.graph.lint()
        for a, b in zip(before, self.run(), strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            bits = [value.reshape(-1).view(torch.uint8) for value in (a, b)]
            assert torch.equal(*bits)
        self.graph.eliminate_dead_code()
        return [n.target for n in self.graph.nodes if n.op == "call_function"]


# --- The passes ---------------------------------------------------------------


def test_constants_are_used_themselves_and_equal_ones_once():
    hand = Hand()
    x = hand.input(2)
    numbers = [(0.5, torch.float32), (0.5, torch.float32), (0.5, torch.float64)]
    numbers += [(0.0, torch.float32), (-0.0, torch.float32)]
    constants = [hand.constant(*number) for number in numbers]
    for constant in constants:
        x = hand.call(
            aten.mul.Tensor, x, hand.call(aten.lift_fresh_copy.default, constant)
        )
    left = hand.rewrite(torch_passes.use_constants_themselves, x)
    assert left == [aten.mul.Tensor] * 5
    assert [len(constant.users) for constant in constants] == [2, 0, 1, 1, 1]


def test_constants_with_copies_that_change_stay_and_so_do_a_loops():
    hand = Hand()
    around, copied = hand.constant(2.0), hand.constant(2.0)
    changed = hand.call(aten.lift_fresh_copy.default, copied)
    hand.call(aten.add_.Tensor, changed, 1.0)
    # Used as it is: what a loop takes from around it, which has another value then.
    outside = hand.call(aten.mul.Tensor, around, 3.0)
    read = hand.call(aten.lift_fresh_copy.default, copied)
    product = hand.call(aten.mul.Tensor, read, 3.0)
    outputs = (changed, outside, product)
    left = hand.rewrite(torch_passes.use_constants_themselves, *outputs)
    assert left.count(aten.lift_fresh_copy.default) == 1
    assert outside.args[0] is around and product.args[0] is copied


def test_detached_tensors_are_those_they_come_from_changed_or_not():
    hand = Hand()
    x = hand.call(aten.mul.Tensor, hand.input(3), 2.0)
    detached = hand.call(aten.detach.default, x)
    hand.call(aten.add_.Tensor, detached, 1.0)
    y = hand.call(aten.mul.Tensor, x, 3.0)
    left = hand.rewrite(torch_passes.remove_detaches, x, y)
    assert left == [aten.mul.Tensor, aten.add_.Tensor, aten.mul.Tensor]


@pytest.mark.parametrize(
    "target, without_effect, others",
    [
        (aten.pow.Tensor_Scalar, [(1,), (1.0,)], [(2,), (0.5,)]),
        (aten.view.default, [([2, 1, 3],)], [([6],)]),
        (aten.squeeze.dim, [(0,), (2,)], [(1,)]),
        (aten.expand.default, [([2, 1, 3],)], [([2, 4, 3],)]),
    ],
)
def test_calls_without_effect_go(target, without_effect, others):
    hand = Hand()
    x = hand.input(2, 1, 3)
    calls = [hand.call(target, x, *args) for args in without_effect + others]
    results = [hand.call(aten.sin.default, call) for call in calls]
    left = hand.rewrite(torch_passes.remove_calls_without_effect, *results)
    assert left.count(target) == len(others)


def test_calls_that_change_the_dtype_stay():
    hand = Hand()
    power = hand.call(aten.pow.Tensor_Scalar, hand.input(3, dtype=torch.int32), 1.0)
    left = hand.rewrite(torch_passes.remove_calls_without_effect, power)
    assert left == [aten.pow.Tensor_Scalar] and power.meta["val"].dtype == torch.float32


@pytest.mark.parametrize("which", ["source", "result"])
def test_calls_without_effect_stay_where_a_tensor_is_changed(which):
    hand = Hand()
    x = hand.call(aten.mul.Tensor, hand.input(3), 2.0)
    power = hand.call(aten.pow.Tensor_Scalar, x, 1)  # a copy
    hand.call(aten.add_.Tensor, x if which == "source" else power, 1.0)
    left = hand.rewrite(torch_passes.remove_calls_without_effect, x, power)
    assert aten.pow.Tensor_Scalar in left


def test_variables_are_read_themselves():
    hand = Hand()
    variable, x = hand.variable(3), hand.input(3)
    reads = [hand.call(aten.clone.default, node) for node in (variable, x)]
    strided = hand.call(
        aten.clone.default, variable, memory_format=torch.contiguous_format
    )
    results = [hand.call(aten.sin.default, node) for node in (*reads, strided)]
    left = hand.rewrite(torch_passes.read_variables_themselves, *results)
    assert left.count(aten.clone.default) == 2
    assert results[0].args == (variable,)


@pytest.mark.parametrize("which", ["variable", "copy", "view"])
def test_variables_that_are_changed_are_copied(which):
    """The copy is an optimizer's, or the value from before the change."""
    hand = Hand()
    variable = hand.variable(3)
    copy = hand.call(aten.clone.default, variable)
    changed = {"variable": variable, "copy": copy}.get(which)
    if changed is None:
        changed = hand.call(aten.view.default, copy, [3, 1])
    hand.call(aten.add_.Tensor, changed, 1.0)
    results = [hand.call(aten.sin.default, node) for node in (variable, copy)]
    left = hand.rewrite(torch_passes.read_variables_themselves, *results)
    assert aten.clone.default in left


@pytest.mark.parametrize("rank", [2, 3])
def test_a_bias_is_added_by_the_product(rank):
    hand = Hand()
    x, kernel, bias = hand.input(6, 4), hand.variable(4, 5), hand.variable(5)
    product = hand.call(aten.mm.default, x, kernel)
    if rank == 3:
        product = hand.call(aten._unsafe_view.default, product, [2, 3, 5])
    result = hand.call(aten.add.Tensor, product, bias)
    left = hand.rewrite(torch_passes.add_biases_to_products, result)
    assert left == [aten.addmm.default, aten.view.default][: rank - 1]


NOT_DENSE = {
    "no variable": lambda h, x, k, b, p: h.call(aten.add.Tensor, p, h.input(5)),
    "scaled": lambda h, x, k, b, p: h.call(aten.add.Tensor, p, b, alpha=2.0),
    "a matrix": lambda h, x, k, b, p: h.call(aten.add.Tensor, p, h.variable(6, 5)),
    "wider": lambda h, x, k, b, p: h.call(
        aten.add.Tensor, h.call(aten.mm.default, x, h.input(4, 1)), b
    ),
    "another dtype": lambda h, x, k, b, p: h.call(
        aten.add.Tensor,
        h.call(
            aten.mm.default,
            *(h.input(*s, dtype=torch.float64) for s in [(6, 4), (4, 5)]),
        ),
        b,
    ),
    "other columns": lambda h, x, k, b, p: h.call(
        aten.add.Tensor, h.call(aten._unsafe_view.default, p, [5, 6]), h.variable(6)
    ),
    "no product": lambda h, x, k, b, p: h.call(
        aten.add.Tensor, h.call(aten.sin.default, p), b
    ),
}


@pytest.mark.parametrize("name", NOT_DENSE)
def test_other_sums_stay(name):
    hand = Hand()
    x, kernel, bias = hand.input(6, 4), hand.variable(4, 5), hand.variable(5)
    product = hand.call(aten.mm.default, x, kernel)
    result = NOT_DENSE[name](hand, x, kernel, bias, product)
    left = hand.rewrite(torch_passes.add_biases_to_products, result)
    assert aten.add.Tensor in left and aten.addmm.default not in left


@pytest.mark.parametrize("read", ["product", "view"])
def test_a_product_that_is_read_elsewhere_is_computed_once(read):
    hand = Hand()
    x, kernel, bias = hand.input(6, 4), hand.variable(4, 5), hand.variable(5)
    product = hand.call(aten.mm.default, x, kernel)
    view = hand.call(aten._unsafe_view.default, product, [2, 3, 5])
    result = hand.call(aten.add.Tensor, view, bias)
    other = hand.call(aten.sin.default, product if read == "product" else view)
    left = hand.rewrite(torch_passes.add_biases_to_products, result, other)
    assert aten.addmm.default not in left


@pytest.mark.parametrize("place", range(4))
def test_a_product_of_what_is_changed_before_the_sum_stays_where_it_is(place):
    hand = Hand()
    x, kernel, bias = hand.input(6, 4), hand.variable(4, 5), hand.variable(5)
    product = hand.call(aten.mm.default, x, kernel)
    hand.call(aten.add_.Tensor, (x, kernel, product, bias)[place], 1.0)
    result = hand.call(aten.add.Tensor, product, bias)
    left = hand.rewrite(torch_passes.add_biases_to_products, result)
    assert aten.mm.default in left


def test_views_of_views_look_at_the_tensor_itself():
    hand = Hand()
    x = hand.input(2, 6)
    first = hand.call(aten.view.default, x, [12])
    second = hand.call(aten.view.default, first, [3, 4])
    third = hand.call(aten.view.default, second, [4, 3])
    back = hand.call(aten.view.default, third, [2, 6])
    results = [hand.call(aten.sin.default, node) for node in (third, back)]
    left = hand.rewrite(torch_passes.merge_views, *results)
    assert left == [aten.view.default] + [aten.sin.default] * 2
    assert results[0].args[0].args[0] is x and results[1].args[0] is x


def test_views_of_what_is_changed_or_of_something_else_stay():
    hand = Hand()
    x = hand.call(aten.mul.Tensor, hand.input(2, 6), 2.0)
    for source in (x, hand.call(aten.t.default, hand.input(1, 12))):
        first = hand.call(aten.view.default, source, [12])
        second = hand.call(aten.view.default, first, [3, 4])
        if source is x:
            hand.call(aten.add_.Tensor, first, 1.0)
            changed = second
    sliced = hand.call(aten.slice.Tensor, hand.input(2, 6), 0, 1, 2)
    view = hand.call(aten.view.default, sliced, [6])
    hand.rewrite(torch_passes.merge_views, changed, second, view)
    assert changed.args[0].args[0] is x and view.args[0] is sliced
    assert changed.args[0].target is aten.view.default


def test_equal_calls_are_made_once():
    hand = Hand()
    x = hand.input(3)
    sums = [
        hand.call(aten.add.Tensor, x, number) for number in (1.0, 1.0, 1, 0.0, -0.0)
    ]
    results = [hand.call(aten.sin.default, node) for node in sums]
    left = hand.rewrite(torch_passes.compute_once, *results)
    assert left.count(aten.add.Tensor) == left.count(aten.sin.default) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda hand, x, y: hand.call(aten.add_.Tensor, y, 1.0),
        lambda hand, x, y: hand.call(aten.add_.Tensor, x, 1.0),
        lambda hand, x, y: hand.call(aten.add.out, x, 1.0, out=y),
        lambda hand, x, y: hand.call(aten._foreach_add_.Scalar, [x, y], 1.0),
        lambda hand, x, y: hand.call(
            aten.add_.Tensor, hand.call(aten.view.default, y, [3, 1]), 1.0
        ),
        lambda hand, x, y: hand.call(
            aten.add_.Tensor,
            hand.call(operator.getitem, hand.call(aten.split.Tensor, y, 2), 0),
            1.0,
        ),
    ],
    ids=["result", "source", "out", "list", "view", "part"],
)
def test_equal_calls_stay_two_where_a_tensor_is_changed_in_between(change):
    hand = Hand()
    x = hand.input(3)
    first = hand.call(aten.mul.Tensor, x, 2.0)
    change(hand, x, first)
    second = hand.call(aten.mul.Tensor, x, 2.0)
    left = hand.rewrite(torch_passes.compute_once, first, second)
    assert left.count(aten.mul.Tensor) == 2


def test_random_draws_and_functions_of_python_stay_two(monkeypatch):
    hand = Hand()
    x = hand.input(3)
    nodes = [hand.call(aten.bernoulli.p, x, 0.5) for _ in range(2)]
    nodes += [hand.call(torch.sin, x) for _ in range(2)]
    hand.graph.output(nodes)
    torch_passes.compute_once(torch_passes.Recording(hand.graph))
    assert sum(n.op == "call_function" for n in hand.graph.nodes) == 4


def test_passes_run_in_an_order_that_leaves_nothing_to_do():
    """Each of them makes work for another one."""
    hand = Hand()
    x, kernel, bias = hand.input(6, 4), hand.variable(4, 5), hand.variable(5)
    results = []
    for _ in range(2):
        read = hand.call(aten.detach.default, hand.call(aten.clone.default, bias))
        read = hand.call(aten.clone.default, hand.call(aten.view.default, read, [5]))
        product = hand.call(aten.mm.default, x, kernel)
        product = hand.call(aten._unsafe_view.default, product, [2, 3, 5])
        dense = hand.call(aten.add.Tensor, product, read)
        flat = hand.call(aten.view.default, dense, [6, 5])
        half = hand.call(aten.lift_fresh_copy.default, hand.constant(0.5))
        results.append(hand.call(aten.mul.Tensor, flat, half))
    left = hand.rewrite(torch_passes.simplify, *results)
    assert left == [aten.addmm.default, aten.mul.Tensor]
    recording = torch_passes.Recording(hand.graph, hand.variables, hand.constants)
    torch_passes.simplify(recording)
    assert [n.target for n in hand.graph.nodes if n.op == "call_function"] == left


def test_an_out_argument_changes_a_tensor():
    @kit.compiled
    def fn(x):
        a, b = x * 2.0, x * 2.0
        torch.add(a, 1.0, out=a)
        return a, b

    a, b = fn(np.ones(2, "float32"))
    assert a.tolist() == [3.0, 3.0] and b.tolist() == [2.0, 2.0]


# --- What may fail --------------------------------------------------------------


@torch.library.custom_op("kit_test::_foreach_check", mutates_args=())
def foreach_check(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@foreach_check.register_fake
def _(x):
    return torch.empty_like(x)


def clone_checked(x):
    return x


FLOATS, INTEGERS = {"dtype": torch.float32}, {"dtype": torch.int32}


@pytest.mark.parametrize(
    "make, expected",
    [
        # Pointwise operators, by their tag.
        (lambda h, x: h.call(aten.mul.Tensor, x, x), (False, False)),
        (lambda h, x: h.call(aten.add_.Tensor, x, 1), (False, False)),
        (lambda h, x: h.call(aten.where.self, h.call(aten.gt.Scalar, x, 1), x, x),
         (False, False)),
        # Those that look at whole numbers.
        (lambda h, x: h.call(aten.remainder.Tensor, x, x), (False, True)),
        (lambda h, x: h.call(aten.remainder_.Tensor, x, x), (False, True)),
        (lambda h, x: h.call(aten.fmod.Tensor, x, x), (False, True)),
        (lambda h, x: h.call(aten.div.Tensor_mode, x, x, rounding_mode="floor"),
         (False, True)),
        (lambda h, x: h.call(aten.div.Tensor, x, x), (False, False)),
        (lambda h, x: h.call(
            aten.masked_fill.Tensor, x, h.call(aten.gt.Scalar, x, 1), h.input()
        ), (False, True)),
        # Copies.
        (lambda h, x: h.call(aten.clone.default, x), (False, False)),
        (lambda h, x: h.call(aten._to_copy.default, x, dtype=torch.int64),
         (False, False)),
        # Arithmetic on lists, and what is taken of its results.
        (lambda h, x: h.call(aten._foreach_mul.List, [x], [x]), (False, False)),
        (lambda h, x: h.call(aten._foreach_add_.Scalar, [x], 1), (False, False)),
        (lambda h, x: h.call(
            operator.getitem, h.call(aten._foreach_mul.List, [x], [x]), 0
        ), (False, False)),
        # Names that only begin like these.
        (lambda h, x: h.call(torch.ops.kit_test._foreach_check.default, x),
         (True, True)),
        (lambda h, x: h.call(clone_checked, x), (True, True)),
        # Everything else.
        (lambda h, x: h.call(
            aten.index_select.default, x, 0, h.input(1, dtype=torch.int64)
        ), (True, True)),
        (lambda h, x: h.call(aten.floor_divide.default, x, x), (True, True)),
        (lambda h, x: h.call(aten.sum.default, x), (True, True)),
        # No calls.
        (lambda h, x: x, (False, False)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("whole", [False, True], ids=["floats", "integers"])
def test_what_may_fail(make, expected, whole):
    hand = Hand()
    node = make(hand, hand.input(2, **(INTEGERS if whole else FLOATS)))
    assert torch_nodes.may_fail(node) == expected[whole]


def test_what_is_known_about_nothing_may_fail():
    hand = Hand()
    x = hand.input(2)
    node = hand.call(aten.remainder.Tensor, x, x)
    assert not torch_nodes.may_fail(node)
    node.meta.clear()
    assert torch_nodes.may_fail(node)


@pytest.mark.parametrize(
    "fail", [ops.mod, ops.floor_divide, lambda x, n: ops.take(x, 9 - 9 * n)]
)
def test_a_step_before_a_failure_changes_nothing(fail):
    variables = [keras.Variable(np.ones(n, "float32")) for n in (3, 2)]
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(variables)

    @kit.compiled
    def step(x, n):
        kit.minimize(
            lambda: sum(ops.sum(v**2) for v in variables), variables, optimizer
        )
        return fail(x, n)

    x = np.arange(2, dtype="int32")
    step(x, np.ones(2, "int32"))
    before = [v.numpy().copy() for v in variables]
    with pytest.raises((RuntimeError, IndexError)):
        step(x, np.array([1, 0], "int32"))
    assert optimizer.iterations.numpy() == 1
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


# --- How long a trace takes -----------------------------------------------------


def test_nodes_are_described_without_a_mode_for_each(monkeypatch):
    """Making one looks at the whole stack: three quarters of a trace's time."""
    made = []
    init = torch._subclasses.FakeTensorMode.__init__

    def count(mode, **options):
        made.append(mode)
        init(mode, **options)

    @kit.compiled
    def fn(x):
        for _ in range(20):
            x = ops.sin(x)
        return x

    monkeypatch.setattr(torch._subclasses.FakeTensorMode, "__init__", count)
    x = np.ones((2, 3), "float32")
    found = ops.convert_to_numpy(fn(x))
    assert not made
    for _ in range(20):
        x = np.sin(x)
    np.testing.assert_allclose(found, x, rtol=1e-5)
