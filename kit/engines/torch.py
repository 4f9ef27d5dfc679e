"""PyTorch: a function recorded once as a flat graph of ATen calls."""

import itertools
import weakref
from typing import Any

import keras
import numpy as np
from keras import ops

from kit.engines import fast_ops
from kit.engines.base import CONVOLUTIONS, eager_scan, flatten, one_after_another
from kit.engines.changed_layers import RECORD_CALLS
from kit.engines.other_frameworks import import_no_other_framework
from kit.engines.replacements import Replacement, fast_op, function
from kit.engines.scope import (
    Scope,
    assign_all,
    context,
    differentiating,
    outer_read,
    with_values,
)
from kit.engines.torch_graph import TorchGraph, TorchLoop
from kit.engines.torch_random import (
    THREEFRY,
    fake_threefry,
    threefry,
    traceable_draws,
)

_SAME = ("float32", "int32", "uint8", "bool")  # dtypes that PyTorch has as they are


class TorchEngine:
    """See `kit.engines.base.Engine`."""

    def __init__(self):
        import torch
        import torch.fx.experimental.proxy_tensor as proxy_tensor

        from kit.engines import torch_branches

        self.torch = torch
        self.branches = torch_branches
        self.set_random_seed = torch.manual_seed
        self.import_no_other_framework = import_no_other_framework
        self.make_fx = proxy_tensor.make_fx
        self.untraced = proxy_tensor.disable_proxy_modes_tracing
        self.loops: weakref.WeakValueDictionary[int, TorchLoop] = (
            weakref.WeakValueDictionary()
        )
        self.numbers = itertools.count()
        # One for each copy of this package (`python -m kit copy`) in a process.
        self.namespace = __name__.replace(".", "_")
        self.library = torch.library.Library(self.namespace, "DEF")
        self.library.define("loop(int number, Tensor[] operands) -> Tensor[]")
        self.library.impl("loop", self._run_loop, "CompositeExplicitAutograd")
        torch.library.register_fake(
            f"{self.namespace}::loop", self._fake_loop, lib=self.library
        )
        self.library.define(THREEFRY, tags=(torch.Tag.pointwise,))
        self.library.impl("threefry", threefry, "CompositeExplicitAutograd")
        torch.library.register_fake(
            f"{self.namespace}::threefry", fake_threefry, lib=self.library
        )
        self.threefry = getattr(torch.ops, self.namespace).threefry.default
        self.device = keras.src.backend.torch.core.get_device
        on_cpu = self.device() == "cpu"
        # A loop saves nothing there, as one step takes milliseconds.
        self.slow_in_loops = CONVOLUTIONS if on_cpu else ()
        self.replacements = [
            RECORD_CALLS,
            *traceable_draws(self.threefry),
            *self._general_ops(),
            function(
                proxy_tensor,
                "extract_val",
                self._describe,
                "a FakeTensorMode for each node, which takes longer than all the rest",
            ),
            *(_cpu_ops() if on_cpu else []),
        ]

        tensor = torch.Tensor
        values = (tensor.numpy, tensor.__array__, tensor.tolist, tensor.item)

        class Guard(torch.overrides.TorchFunctionMode):
            """Keeps what a trace would take as a constant from becoming one."""

            def __torch_function__(self, function, types, args=(), kwargs=None):
                args, kwargs = torch_branches.resolve((args, dict(kwargs or {})))
                if function in values:
                    raise TypeError(
                        "A compiled function asked for the value of an array (as "
                        "`float`, `convert_to_numpy` or `if` do), which isn't known "
                        "while it is compiled. Use keras.ops, or return the array."
                    )
                if function is torch.nn.functional.one_hot:  # it looks for the maximum
                    x, num_classes = args
                    classes = torch.arange(num_classes, device=x.device)
                    return (x.unsqueeze(-1) == classes).to(torch.int64)
                if torch.is_tensor(kwargs.get("alpha")):  # a learning rate
                    changes = torch._foreach_mul(args[1], kwargs.pop("alpha"))
                    args = (args[0], changes)
                return function(*args, **kwargs)

        self.guard = Guard

    def _general_ops(self) -> list[Replacement]:
        core = keras.src.backend.core
        return [
            function(core, "cond", self.cond, "a recorded graph has no branches"),
            fast_op(
                core,
                "slice_update",
                fast_ops.torch_slice_update,
                "Keras asks for each number of the place, which a trace doesn't know",
            ),
            fast_op(
                keras.src.optimizers.base_optimizer,
                "clip_by_global_norm",
                fast_ops.torch_clip_by_global_norm,
                "one call for all gradients in the place of one for each",
            ),
        ]

    def _describe(self, original, value, include_real=False):
        """Returns what a graph's node keeps of a tensor: shape, strides and dtype."""
        torch = self.torch
        if type(value) is not torch.Tensor or value.layout != torch.strided:
            return original(value, include_real)
        return torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device="meta"
        )

    def trace(self, fn, arrays, inductor):
        torch = self.torch
        graph = TorchGraph(self, fn, [self.tensor(x) for x in arrays])
        run_graph = graph.compile(inductor)
        captured, sources, written = graph.captured, graph.sources, graph.written

        def run(arrays):
            with torch.no_grad():
                outputs = run_graph(
                    *map(self.tensor, arrays),
                    *captured,
                    *[v._value for v in sources],
                )
                for variable, value in zip(written, outputs, strict=False):
                    variable._value.data = value
            return graph.unflatten(outputs[len(written) :])

        return run

    def release(self):
        """PyTorch's programs go with the last that holds them."""

    def tensor(self, x):
        if isinstance(x, np.ndarray):
            # A copy: PyTorch would share the memory. Keras makes one too, in 10 us.
            if x.dtype.name in _SAME and self.device() == "cpu":
                return self.torch.from_numpy(x.copy())
            if not x.flags.writeable:
                x = x.copy()  # or PyTorch warns
        # A graph is recorded for contiguous inputs.
        return ops.convert_to_tensor(x).contiguous()

    def _differentiate(self, fn, values, variables=()):
        """Runs `fn` on a scope of its own; returns its results and updates."""
        with (
            self.torch.enable_grad(),
            differentiating(),
            Scope(
                outer_read(), zip(variables, values, strict=True), differentiated=True
            ) as scope,
        ):
            results = fn()
        return results, scope.updates()

    def value_and_grad(self, loss_fn, variables):
        torch = self.torch
        values = [v.value.detach().requires_grad_() for v in variables]
        (scaled, (loss, aux, has_aux)), updates = self._differentiate(
            loss_fn, values, variables
        )
        if not scaled.requires_grad:
            return (loss, aux, has_aux), [None] * len(variables)
        grads = torch.autograd.grad(scaled, values, allow_unused=True)
        assign_all(updates[0], [x.detach() for x in updates[1]])
        leaves, spec = flatten((loss, aux))
        leaves = [x.detach() if torch.is_tensor(x) else x for x in leaves]
        return (*spec.unflatten(leaves), has_aux), grads

    def apply_gradients(self, optimizer, grads, variables):
        with self.torch.no_grad():
            if context.scope:
                # Keras' optimizers change tensors in place on PyTorch: give them
                # copies, which nothing else can be looking at.
                for v in [*variables, *optimizer.variables]:
                    v.assign(v.value.clone())
            optimizer.apply(grads, variables)

    def check_optimizer(self, optimizer):
        """Keras decides in Python, from a tensor's value, whether these act."""
        without = None
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            without = "a LossScaleOptimizer; train in bfloat16, which needs no scaling"
        elif isinstance(optimizer, keras.optimizers.Nadam):
            without = "Nadam, which computes in NumPy; use Adam"
        elif optimizer.gradient_accumulation_steps:
            without = "`gradient_accumulation_steps`; use a larger batch"
        elif optimizer.ema_overwrite_frequency and optimizer.use_ema:
            without = "`ema_overwrite_frequency`; call `finalize_variable_values`"
        if without and context.tracing:
            raise ValueError(f"minimize: PyTorch can't compile {without} instead.")

    def gradient(self, fn, leaves):
        torch = self.torch
        nested = torch.is_grad_enabled() and context.depth
        if nested:  # stay connected with what the inputs were computed from
            leaves = [
                x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
                for x in leaves
            ]
        else:
            leaves = [x.detach().requires_grad_() for x in leaves]
        value, updates = self._differentiate(lambda: fn(leaves), ())
        if value.requires_grad:
            grads = torch.autograd.grad(
                value, leaves, create_graph=nested, allow_unused=True
            )
        else:
            grads = [None] * len(leaves)
        if not nested:
            updates = (updates[0], [x.detach() for x in updates[1]])
        assign_all(*updates)
        return [
            torch.zeros_like(x) if g is None else g
            for x, g in zip(leaves, grads, strict=True)
        ]

    def cond(self, original, pred, true_fn, false_fn):
        """Both ways, of which the results of one are taken: a graph has no branches."""
        torch = self.torch
        if not torch.is_tensor(pred):
            return original(pred, true_fn, false_fn)
        ways: list[Any] = []
        branches = self.branches
        yes_branch, no_branch = branches.Branch(), branches.Branch()
        read = outer_read()
        for fn, branch in ((true_fn, yes_branch), (false_fn, no_branch)):
            # What is first read in a branch, all read later: it isn't the branch's.
            with branch, Scope(lambda v, b=branch: b.share(read(v))) as scope:
                leaves, spec = flatten(fn())
                leaves = branches.resolve(leaves)
                scope.state_mapping = branches.resolve(scope.state_mapping)
            ways.append((leaves, spec, scope))
        (yes, spec, yes_scope), (no, no_spec, no_scope) = ways
        if spec != no_spec:
            raise ValueError(
                "keras.ops.cond: both functions must return the same structure, "
                f"received {spec} and {no_spec}."
            )

        def choose(a, b):
            if a is None and b is None:  # such as of ways that only assign
                return None
            return torch.where(pred, self.tensor(a), self.tensor(b))

        for key, variable in (yes_scope.written | no_scope.written).items():
            before = variable.value
            scopes = (yes_scope, no_scope)
            after = (scope.state_mapping.get(key, before) for scope in scopes)
            variable.assign(choose(*after))
        branches.merge(pred, yes_branch, no_branch)
        return spec.unflatten([choose(a, b) for a, b in zip(yes, no, strict=True)])

    def scan(self, body, carry, slices, length, reverse):
        torch = self.torch
        if not context.tracing or torch.is_grad_enabled():
            return eager_scan(body, carry, slices, length, reverse)
        with self.untraced():
            loop = TorchLoop(self, body, carry, slices, length, reverse)
        state = [v.value for v in loop.written]
        others = [v.value for v in loop.read_only]
        operands = [*state, *carry, *loop.captured, *others, *slices]
        outputs = getattr(torch.ops, self.namespace).loop(loop.number, operands)
        context.frame.append(loop)
        assign_all(loop.written, outputs[: len(state)])
        outputs = outputs[len(state) :]
        return outputs[: len(carry)], outputs[len(carry) :]

    def vectorize(self, fn, variables, values, arrays, num_runs):
        run = with_values(fn, variables)
        return one_after_another(self.scan, run, values, arrays, num_runs)

    def _run_loop(self, number, operands):
        loop = self.loops[number]
        # Shapes are all that a trace needs.
        return loop.zeros() if context.tracing else loop.run(operands)

    def _fake_loop(self, number, operands):
        return self.loops[number].zeros()


def _cpu_ops() -> list[Replacement]:
    backend = keras.src.backend
    fused = "PyTorch's fused operator is several times faster"
    return [
        fast_op(
            backend.nn,
            "_transpose_spatial_inputs",
            fast_ops.torch_transpose_inputs,
            "images as a view with channels last, which PyTorch is faster on",
        ),
        fast_op(backend, "lstm", fast_ops.torch_lstm, fused),
        fast_op(backend, "gru", fast_ops.torch_gru, fused),
    ]
