"""JAX: a pure function of the variables' values, compiled by `jax.jit`."""

import os
import sys
import types
from typing import Any

import keras
from keras import ops

from kit.engines import fast_ops
from kit.engines.base import CONVOLUTIONS, eager_scan, one_after_another
from kit.engines.changed_layers import RECORD_CALLS
from kit.engines.other_frameworks import import_no_other_framework
from kit.engines.replacements import Replacement, fast_op, function, installed
from kit.engines.scope import (
    Scope,
    assign_all,
    context,
    differentiating,
    outer_read,
    raw_value,
    tracing,
    with_values,
)


class _Frame:
    """A `scan` body under trace, in which it numbers the scans.

    So each has a name that is the same in every trace of the function.
    """

    def __init__(self, key, plan):
        self.key = key
        self.plan = plan  # name of a scan -> the variables that its body writes
        self.count = 0

    def next_key(self):
        self.count += 1
        return (*self.key, self.count)


def dispatch_on_this_thread() -> None:
    """Has JAX run programs on the calling thread, on CPUs.

    JAX hands each program to another thread, which costs 50 us when that thread has to
    wake up: several times what an agent's network takes to act. On this thread, a step
    that nobody waits for costs 10 us more. JAX looks at the setting when its backend
    starts. Set the environment variable `JAX_CPU_ENABLE_ASYNC_DISPATCH` to have it left
    alone, or the setting itself after `import kit`.
    """
    import jax

    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        jax.config.update("jax_cpu_enable_async_dispatch", False)


class JaxEngine:
    """See `kit.engines.base.Engine`."""

    def __init__(self):
        import jax

        self.jax = jax
        self.tensor = ops.convert_to_tensor
        self.set_random_seed = lambda seed: None  # JAX has no generator of its own
        self.import_no_other_framework = import_no_other_framework
        self.discovering = False
        variable = types.SimpleNamespace(_value=jax.numpy.zeros(()))
        self.own_references = _count_references([variable._value])[0]
        on_cpu = jax.default_backend() == "cpu"
        # On CPUs, they gain nothing from a loop: a step is work enough.
        self.slow_in_loops = CONVOLUTIONS if on_cpu else ()
        self.replacements = [
            RECORD_CALLS,
            fast_ops.threefry_once(jax.jit),
            *(_fast_ops(jax) if on_cpu else []),
        ]

    def trace(self, fn, arrays, inductor):
        jax = self.jax
        plan: dict[tuple, list] = {}
        scope: Any = None
        unflatten: Any = None

        def discover(arrays):
            nonlocal scope
            scope = Scope(raw_value)
            context.frame = _Frame((), plan)
            with scope:
                fn(arrays)
            return ()

        self.discovering = True
        try:
            jax.eval_shape(discover, arrays)
        finally:
            self.discovering = False
            context.frame = None
        written = list(scope.written.values())
        kept = [v for key, v in scope.read.items() if key not in scope.written]
        for variable in written + kept:  # a Python number left them a weak type
            if raw_value(variable).weak_type:
                variable.assign(jax.numpy.array(variable._value, variable.dtype))

        def pure(written_values, kept_values, arrays):
            nonlocal unflatten
            values = zip(
                [*written, *kept], [*written_values, *kept_values], strict=True
            )
            # JAX traces when the program is first called, out of our sight.
            with (
                tracing(),
                installed(self.replacements),
                Scope(_unforeseen, values) as scope,
            ):
                context.frame = _Frame((), plan)
                try:
                    results, unflatten = fn(arrays)
                finally:
                    context.frame = None
                return results, [scope.state_mapping[id(v)] for v in written]

        # The debugger of NaNs runs a failed program again, on the same arrays.
        donate = () if jax.config.jax_debug_nans else (0,)
        program = jax.jit(pure, donate_argnums=donate)

        def run(arrays):
            old = [v._value for v in written]
            rest = [v._value for v in kept]
            # What somebody else holds too can't be donated: `a.assign(b)` lets two
            # variables have one array, and `value = a.value` keeps it.
            for i, references in enumerate(_count_references(old)):
                if references > self.own_references:
                    old[i] = jax.numpy.array(old[i], copy=True)
            results, new = program(old, rest, list(arrays))
            for variable, value in zip(written, new, strict=True):
                variable._value = value
            return unflatten(results)

        return run

    def release(self):
        """JAX's programs go with the functions that they were made of."""

    def _pure(self, fn, variables=()):
        """`fn()` as a function of the variables' values: (out, updates)."""
        written = []
        read = outer_read()

        def pure(values):
            nonlocal written
            with differentiating():
                values = zip(variables, values, strict=True)
                with Scope(read, values, differentiated=True) as scope:
                    out = fn()
                written, updates = scope.updates()
            return out, updates

        return pure, lambda updates: assign_all(written, updates)

    def value_and_grad(self, loss_fn, variables):
        jax = self.jax
        pure, commit = self._pure(loss_fn, variables)
        reached = set()
        has_aux = False
        checking = self.discovering or not context.tracing

        def mark(index):
            """The identity, which notes that a gradient came by."""

            @jax.custom_vjp
            def identity(x):
                return x

            def backward(_, cotangent):
                reached.add(index)
                return (cotangent,)

            identity.defvjp(lambda x: (x, None), backward)
            return identity

        def with_aux(values):
            nonlocal has_aux
            if checking:
                values = [mark(i)(x) for i, x in enumerate(values)]
            (scaled, (loss, aux, has_aux)), updates = pure(values)
            return scaled, (loss, aux, updates)

        values = [v.value for v in variables]
        grads, (loss, aux, updates) = jax.grad(with_aux, has_aux=True)(values)
        commit(updates)
        if checking:
            grads = [g if i in reached else None for i, g in enumerate(grads)]
        return (loss, aux, has_aux), grads

    def check_optimizer(self, optimizer):
        pass

    def apply_gradients(self, optimizer, grads, variables):
        if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer.apply(grads, variables)
            return
        # It branches on the gradients, which on JAX only this form of it can.
        values = [v.value for v in variables]
        state = [v.value for v in optimizer.variables]
        values, state = optimizer.stateless_apply(state, grads, values)
        assign_all([*variables, *optimizer.variables], [*values, *state])

    def gradient(self, fn, leaves):
        state = {}

        def scalar(leaves):
            pure, state["commit"] = self._pure(lambda: fn(leaves))
            return pure([])

        grads, updates = self.jax.grad(scalar, has_aux=True)(leaves)
        state["commit"](updates)
        return grads

    def scan(self, body, carry, slices, length, reverse):
        jax = self.jax
        if not context.tracing:
            return eager_scan(body, carry, slices, length, reverse)
        key, plan = context.frame.next_key(), context.frame.plan
        outer = context.scope

        def traced_body(carry, x):
            before, context.frame = context.frame, _Frame(key, plan)
            try:
                return body(carry, x)
            finally:
                context.frame = before

        if self.discovering:  # one turn shows what is written, and all shapes
            with Scope(outer.get_current_value) as scope:
                carry, ys = traced_body(carry, [x[0] for x in slices])
            written, updates = scope.updates()
            plan[key] = written
            assign_all(written, updates)
            ys = [jax.numpy.broadcast_to(y, (length, *y.shape)) for y in ys]
            return carry, ys

        written = plan[key]

        def turn(state, x):
            carry, values = state
            values = zip(written, values, strict=True)
            with Scope(outer.get_current_value, values) as scope:
                carry, ys = traced_body(carry, x)
                return (carry, [scope.state_mapping[id(v)] for v in written]), ys

        init = (carry, [outer.get_current_value(v) for v in written])
        # Weak types (of Python numbers) would have the body traced once more.
        init = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), init)
        (carry, values), ys = jax.lax.scan(
            turn, init, slices, length=length, reverse=reverse
        )
        assign_all(written, values)
        return carry, ys

    def vectorize(self, fn, variables, values, arrays, num_runs):
        run = with_values(fn, variables)
        if not context.tracing:
            return one_after_another(self.scan, run, values, arrays, num_runs)
        return self.jax.vmap(run, axis_size=num_runs)(values, arrays)


def _fast_ops(jax) -> list[Replacement]:
    from kit.engines import jax_convolutions

    backend = keras.src.backend
    slow = "XLA's form of it is several times slower on CPUs"
    slow_loops = "in loops on CPUs, XLA's form of its gradient is ten times slower"
    return [
        *(
            function(jax.lax, name, getattr(jax_convolutions, name), slow_loops)
            for name in ("conv_general_dilated", "conv_transpose")
        ),
        fast_op(backend.nn, "max_pool", fast_ops.jax_max_pool, slow),
        fast_op(backend, "lstm", fast_ops.xla_lstm, slow, scan=jax.lax.scan),
        fast_op(backend, "gru", fast_ops.xla_gru, slow, scan=jax.lax.scan),
    ]


def _count_references(values):
    return [sys.getrefcount(value) for value in values]


def _unforeseen(variable):
    raw_value(variable)  # a variable created in the trace has an error of its own
    raise RuntimeError(
        f"The variable {variable.path!r} was used in one trace of a function and not "
        "in another: the function does something else each time it runs (it branches "
        "on something outside of it). Pass what it branches on as an argument."
    )
