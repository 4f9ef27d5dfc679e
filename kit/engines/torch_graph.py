"""PyTorch's recorded graphs: how one is made, rewritten, and run."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import torch
from torch.fx import Node

from kit.engines import fast_ops, torch_calls
from kit.engines.base import Tensor, Unflatten
from kit.engines.scope import Scope, context, raw_value
from kit.engines.torch_nodes import is_view, may_fail, readers
from kit.engines.torch_passes import Recording, simplify
from kit.engines.torch_random import threefry

if TYPE_CHECKING:
    from kit.engines.torch import TorchEngine


class TorchGraph:
    """A function as a flat graph of ATen calls.

    The graph's inputs are the function's arguments, the tensors in `captured` and the
    values of the variables in `sources`, in this order. Its outputs are the new values
    of the variables in `written`, then the results.

    Attributes:
        module: The graph, a callable.
        captured: Constants, and what a loop's body takes from around it.
        sources: Variables that the function reads.
        written: Variables whose new values are among the outputs.
        unflatten: Restores the structure of the function's results from a list.
        loops: Loops that the graph calls by their numbers, kept alive here.
    """

    module: torch.fx.GraphModule
    captured: list[Tensor]
    sources: list[keras.Variable]
    written: list[keras.Variable]
    unflatten: Unflatten
    loops: "list[TorchLoop]"

    def __init__(
        self,
        engine: "TorchEngine",
        fn: Callable[[Sequence[Tensor]], tuple[list[Tensor], Any]],
        tensors: Sequence[Tensor],
        in_loop: bool = False,
    ):
        held = {}  # id of a tensor -> the variable whose value it stands for
        examples = []  # keeps these ids valid

        def read(variable):
            with engine.untraced():
                example = raw_value(variable).detach()
                example = _copy(example) if in_loop else example.clone()
            held[id(example)] = variable
            examples.append(example)
            # A copy inside the trace: make_fx takes what it hasn't seen before
            # for a constant, whose value may be looked at.
            return example.clone()

        def flat(*tensors):
            with Scope(read) as scope:
                results, self.unflatten = fn(tensors)
                self.written, updates = scope.updates()
            return engine.branches.resolve([*updates, *results])

        around, context.frame = context.frame, []
        try:
            with torch.no_grad(), engine.guard(), engine.branches.Region():
                tensors = [_copy(x.detach()) for x in tensors]
                self.module = engine.make_fx(flat)(*tensors)
            self.loops = context.frame  # the graph knows them by number only
        finally:
            context.frame = around
        # Without the guard of a trace around this one.
        with torch._C.DisableTorchFunction(), torch.no_grad():
            self._rewrite(engine, held, in_loop)

    def _rewrite(self, engine, held, in_loop):
        recording = self._lift(held)
        for node in self.module.graph.find_nodes(
            op="call_function", target=torch.ops.aten.mkldnn_rnn_layer.default
        ):
            node.target = fast_ops.torch_lstm_forward
        simplify(recording)
        self._own_outputs(recording.variables, in_loop)
        self.module.graph.eliminate_dead_code()
        self._work_in_place(recording.variables, in_loop)
        torch_calls.hold_numbers(self.module)
        torch_calls.call_directly(self.module)
        for node in self.module.graph.nodes:
            if node.target is engine.threefry:  # without PyTorch's dispatcher
                node.target = threefry
        self.module.recompile()

    def _lift(self, held):
        """Turns tensors that the trace took for constants into inputs.

        Returns:
            The graph, with what each of these inputs stands for.
        """
        graph = self.module.graph
        found: dict[int, tuple] = {}
        for node in graph.find_nodes(op="get_attr"):
            tensor = getattr(self.module, node.target)
            found.setdefault(id(tensor), (tensor, []))[1].append(node)
        captured = [x for key, x in found.items() if key not in held]
        sources = [(held[key], x[1]) for key, x in found.items() if key in held]
        self.captured = [tensor for tensor, _ in captured]
        self.sources = [variable for variable, _ in sources]
        arguments = list(graph.find_nodes(op="placeholder"))
        if arguments:  # then these
            here = graph.inserting_after(arguments[-1])
        else:
            here = graph.inserting_before(next(iter(graph.nodes)))
        variables: dict[Node, keras.Variable] = {}
        constants: dict[Node, Tensor] = {}
        for owner, nodes in captured + sources:
            with here:
                placeholder = graph.placeholder(f"lifted_{nodes[0].name}")
            here = graph.inserting_after(placeholder)
            value = getattr(owner, "_value", owner)
            placeholder.meta["val"] = torch.empty_like(value, device="meta")
            if isinstance(owner, keras.Variable):
                variables[placeholder] = owner
            else:
                constants[placeholder] = owner
            for node in nodes:
                node.replace_all_uses_with(placeholder)
                graph.erase_node(node)
        for name in list(self.module._buffers) + list(self.module.__dict__):
            if name.startswith("_tensor_constant"):
                delattr(self.module, name)
        return Recording(graph, variables, constants)

    def _work_in_place(self, variables, in_loop):
        """Lets optimizers change the variables themselves, not copies of them.

        `minimize` gives them a copy, `clone` in the graph. It isn't needed where
        nobody reads the old value afterwards, and where nothing can fail any more
        that would leave half of the variables changed. (The state of a loop is a
        copy already: there, failing does no harm.)
        """
        graph = self.module.graph
        nodes: list[Any] = list(graph.nodes)
        order = {node: i for i, node in enumerate(nodes)}
        output = nodes[-1]
        final = dict(zip(map(id, self.written), output.args[0], strict=False))
        last_risk = max((order[n] for n in nodes if may_fail(n)), default=-1)
        for node in nodes:
            if node.target is not torch.ops.aten.clone.default or node.kwargs:
                continue
            source = node.args[0]
            variable = variables.get(source)
            if final.get(id(variable)) != node:
                continue
            first_change = min(order[user] for user in readers(node))
            others = readers(source) - {node}
            if all(order[reader] < first_change for reader in others) and (
                in_loop or last_risk < first_change < order[output]
            ):
                node.replace_all_uses_with(source)
                graph.erase_node(node)
        if not in_loop:  # what was changed in place needn't be returned
            values = list(output.args[0])
            pairs = list(zip(self.written, values, strict=False))
            kept = [p for p in pairs if variables.get(p[1]) is not p[0]]
            self.written = [variable for variable, _ in kept]
            output.args = ([value for _, value in kept] + values[len(pairs) :],)

    def _own_outputs(self, variables, in_loop):
        """Gives each output memory of its own; drops variables that stay unchanged.

        Those of a loop's body, which are its next arguments, are also made contiguous,
        as the body is recorded for such arguments.
        """
        graph = self.module.graph
        output = next(iter(graph.find_nodes(op="output")))
        values = list(output.args[0])
        count = len(self.written)
        pairs = [
            (variable, value)
            for variable, value in zip(self.written, values[:count], strict=True)
            if variables.get(value) is not variable
        ]
        self.written = [variable for variable, _ in pairs]
        outputs = []
        for value in [v for _, v in pairs] + values[count:]:
            shared = value in outputs or value.op == "placeholder" or is_view(value)
            if shared or (in_loop and not value.meta["val"].is_contiguous()):
                with graph.inserting_before(output):
                    value = graph.call_function(
                        torch.ops.aten.clone.default,
                        (value,),
                        {"memory_format": torch.contiguous_format},
                    )
            outputs.append(value)
        output.args = (outputs,)

    def compile(self, inductor):
        """Returns the program. With TorchInductor, loops are compiled further."""
        if not inductor:
            return self.module.forward
        if not self.loops:
            return torch.compile(self.module, dynamic=False)
        for loop in self.loops:
            loop.compile()
        return self.module.forward


class TorchLoop:
    """The body of a `scan`, recorded once, run `length` times.

    Attributes:
        number: What recorded graphs know the loop by.
        call: The body's program.
        captured: Constants, and what the body takes from around it.
        written: Variables that the body assigns.
        read_only: Variables that it only reads.
        threefry: Random numbers as one operator of PyTorch.
    """

    number: int
    call: Callable[..., list[Tensor]]
    captured: list[Tensor]
    written: list[keras.Variable]
    read_only: list[keras.Variable]

    def __init__(
        self,
        engine: "TorchEngine",
        body: Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[list, list]],
        carry: list[Tensor],
        slices: list[Tensor],
        length: int,
        reverse: bool,
    ):
        self.number = next(engine.numbers)
        engine.loops[self.number] = self
        self.threefry = engine.threefry
        self.steps = range(length)[:: -1 if reverse else 1]

        def fn(tensors):
            new_carry, ys = body(tensors[: len(carry)], tensors[len(carry) :])
            self.examples = [*new_carry, *ys]
            return self.examples, None

        examples = [*carry, *(x[0] for x in slices)]
        self.graph = TorchGraph(engine, fn, examples, in_loop=True)
        # Out of the trace, which they would keep alive.
        self.examples = [x.detach().clone() for x in self.examples]
        self.call = self.graph.module.forward
        self.written = self.graph.written
        written = {id(v) for v in self.written}
        self.read_only = [v for v in self.graph.sources if id(v) not in written]
        self.captured = self.graph.captured
        self.num_carry = len(carry)
        self.num_slices = len(slices)

    def zeros(self):
        """Outputs of the right shapes and dtypes, for traces."""
        carry, ys = self.examples[: self.num_carry], self.examples[self.num_carry :]
        shapes = [(tuple(x.shape), x) for x in [v._value for v in self.written] + carry]
        shapes += [((len(self.steps), *y.shape), y) for y in ys]
        return [
            torch.zeros(shape, dtype=x.dtype, device=x.device) for shape, x in shapes
        ]

    def compile(self):
        """Compiles the body with TorchInductor at its next call, or the loops in it."""
        for loop in self.graph.loops:
            loop.compile()
        if not self.graph.loops:
            self.call = _by_inductor(self.graph.module, self.threefry)

    def run(self, operands):
        """From the operands of `kit::loop` to its outputs."""
        num_written = len(self.written)
        num_state = num_written + self.num_carry
        given = operands[:num_written]
        operands = [x.contiguous() for x in operands]  # or the body's code doesn't fit
        # The body may change the variables in place: they are the loop's own.
        state = [x.clone() for x in operands[:num_written]]
        state += operands[num_written:num_state]
        operands = operands[num_state:]
        captured = operands[: len(self.captured)]
        others = operands[len(self.captured) : len(operands) - self.num_slices]
        slices = [x.unbind(0) for x in operands[len(operands) - self.num_slices :]]
        # Where each value of a variable comes from: the state, or from outside.
        position = {id(v): i for i, v in enumerate(self.written)}
        others = iter(others)
        sources = [
            (position.get(id(v)), None if id(v) in position else next(others))
            for v in self.graph.sources
        ]
        ys: list[Any] = [None] * len(self.steps)
        for t in self.steps:
            outputs = self.call(
                *state[num_written:],
                *[x[t] for x in slices],
                *captured,
                *[fixed if i is None else state[i] for i, fixed in sources],
            )
            state, ys[t] = outputs[:num_state], outputs[num_state:]
        # A variable keeps its strides, as products round otherwise with others.
        for i, x in enumerate(given):
            if not x.is_contiguous():
                state[i] = torch.empty_like(x).copy_(state[i])
        return [*state, *(torch.stack(column) for column in zip(*ys, strict=True))]


def _copy(x):
    """Returns a copy that is contiguous, whatever the tensor is."""
    return x.clone(memory_format=torch.contiguous_format)


def _by_inductor(module, operator):
    """Returns a module's program by TorchInductor, compiled at the first call.

    `torch.compile` would check all arguments before each call, which takes as long as a
    small network does. A loop's are alike each time: contiguous.
    """
    program = None

    def call(*args):
        nonlocal program
        if program is None:
            for node in module.graph.nodes:
                if node.target is threefry:  # As code it compiles for a minute.
                    node.target = operator
            module.recompile()
            program = torch._inductor.standalone_compile(
                module,
                list(args),
                dynamic_shapes="from_example_inputs",
                options={"config_patches": {"size_asserts": False}},
            )
        return program(*args)

    return call
