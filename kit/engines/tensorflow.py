"""TensorFlow: `tf.function`, compiled by XLA where that is faster."""

import gc
import itertools
import threading
import weakref
from typing import Any

import keras

from kit.engines import fast_ops
from kit.engines.base import (
    CONVOLUTIONS,
    eager_scan,
    one_after_another,
    scan_of_structures,
)
from kit.engines.changed_layers import RECORD_CALLS
from kit.engines.replacements import Replacement, fast_op, function, installed
from kit.engines.scope import assign_all, context, differentiating, tracing


class _InOrder(threading.local):
    """Has variables of what is called in a block read before they are assigned.

    What XLA doesn't compile, TensorFlow optimizes at its first call, and its pass for
    dependencies then lets a variable be assigned before all that should see its old
    value has read it. `tf.config.optimizer` would switch the pass off for the whole
    process, other programs included. The options of a call are private in TensorFlow;
    test_backend.py has a test that names them.
    """

    def __init__(self):
        from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
        from tensorflow.python.eager import context as eager

        self.context = eager.context()
        self.off = rewriter_config_pb2.RewriterConfig.OFF
        self.read_config = config_pb2.ConfigProto.FromString
        self.options = eager.FunctionCallOptions
        self.usual = self.ours = None
        self.depth = 0  # a call can be interrupted by another one, as in callbacks

    def __enter__(self):
        self.depth += 1
        if self.depth > 1:
            return
        usual = self.context.function_call_options
        if usual is not self.usual:  # the user has set options since
            config = self.read_config(usual.config_proto_serialized)
            config.graph_options.rewrite_options.dependency_optimization = self.off
            self.usual, self.ours = usual, self.options(usual.executor_type, config)
        self.context.function_call_options = self.ours

    def __exit__(self, *error):
        self.depth -= 1
        if self.depth == 0:
            self.context.function_call_options = self.usual


class TensorFlowEngine:
    """See `kit.engines.base.Engine`."""

    def __init__(self):
        import tensorflow as tf

        self.tf = tf
        self.tensor = tf.convert_to_tensor  # Keras' hands variables back as they are
        self.set_random_seed = tf.random.set_seed
        self.import_no_other_framework = lambda: None  # Keras imports no other
        self.in_order = _InOrder()
        self.on_cpu = not tf.config.list_physical_devices("GPU")
        # In a loop, they take a quarter longer on CPUs.
        self.slow_in_loops = CONVOLUTIONS if self.on_cpu else ()
        self.replacements = [
            RECORD_CALLS,
            _record_registrations(),
            fast_ops.threefry_once(lambda fn: tf.function(fn, autograph=False)),
            *(_fast_ops(tf, scan_of_structures(self.scan)) if self.on_cpu else []),
        ]

    def trace(self, fn, arrays, inductor):
        tf = self.tf
        unflatten: Any = None

        def pure(*arrays):
            nonlocal unflatten
            with tf.variable_creator_scope(_refuse_creation):
                results, unflatten = fn(arrays)
            return results

        specs = [tf.TensorSpec(x.shape, x.dtype) for x in arrays]
        registered: list[Any] = []

        def make(jit_compile):
            program = tf.function(pure, jit_compile=jit_compile, autograph=False)
            context.for_xla, context.registered = jit_compile, registered
            try:
                return program.get_concrete_function(*specs)
            finally:
                context.for_xla, context.registered = False, None

        weakref.finalize(make, _unregister, registered)  # goes with the program

        program = make(jit_compile=True)
        if self.on_cpu and _has_convolution(program.graph):
            # XLA's convolutions take several times longer on the CPU than those of
            # TensorFlow's graphs, and in loops longer still.
            program = make(jit_compile=False)

        def call(arrays):
            tensors = list(map(tf.convert_to_tensor, arrays))
            # What `program(*tensors)` comes to, without comparing each argument with
            # what was traced, which takes longer than a small network: arguments of
            # another kind have a program of their own. Private in TensorFlow;
            # test_backend.py has a test that names it.
            with self.in_order:
                return unflatten(program._call_flat(tensors, program.captured_inputs))

        def run(arrays):
            nonlocal program
            try:
                return call(arrays)
            except tf.errors.InvalidArgumentError as error:
                if "unsupported operations" not in error.message:
                    raise
            # XLA lacks some operations, such as those that turn images.
            with tracing(), installed(self.replacements):
                program = make(jit_compile=False)
            return call(arrays)

        return run

    def release(self):
        """A graph and its operations hold each other."""
        gc.collect()

    def value_and_grad(self, loss_fn, variables):
        tf = self.tf
        values = [v.value for v in variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for value in values:
                tape.watch(value)
            with differentiating():
                scaled, results = loss_fn()
        grads = tape.gradient(scaled, values)
        # Embedding gives tf.IndexedSlices, the other backends arrays.
        grads = [g if g is None else tf.convert_to_tensor(g) for g in grads]
        return results, grads

    def check_optimizer(self, optimizer):
        pass

    def apply_gradients(self, optimizer, grads, variables):
        optimizer.apply(grads, variables)

    def gradient(self, fn, leaves):
        tf = self.tf
        leaves = [tf.identity(x) for x in leaves]  # two may be the same tensor
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(leaves)
            with differentiating():
                value = fn(leaves)
        zero = tf.UnconnectedGradients.ZERO
        return [
            tf.convert_to_tensor(g)
            for g in tape.gradient(value, leaves, unconnected_gradients=zero)
        ]

    def scan(self, body, carry, slices, length, reverse):
        tf = self.tf
        if not context.tracing:
            return eager_scan(body, carry, slices, length, reverse)

        # Traced once as a function of its own, which tells what the loop has
        # to allocate; the loop then calls it. A loop that is differentiated has its
        # body itself: XLA has to see the body's constants in the gradient.
        turn = tf.function(lambda carry, x: body(carry, x), autograph=False)
        turn = turn.get_concrete_function(
            [tf.TensorSpec(c.shape, c.dtype) for c in carry],
            [tf.TensorSpec(x.shape[1:], x.dtype) for x in slices],
        )
        arrays = [
            tf.TensorArray(y.dtype, size=length, element_shape=y.shape)
            for y in turn.structured_outputs[1]
        ]

        def step(i, carry, arrays):
            t = length - 1 - i if reverse else i
            run = body if context.depth else turn
            carry, ys = run(carry, [x[t] for x in slices])
            arrays = [a.write(t, y) for a, y in zip(arrays, ys, strict=True)]
            return i + 1, carry, arrays

        _, carry, arrays = tf.while_loop(
            lambda i, *_: i < length,
            step,
            (tf.constant(0), carry, arrays),
            # XLA needs the bound to differentiate the loop.
            maximum_iterations=length,
        )
        return carry, [a.stack() for a in arrays]

    def vectorize(self, fn, variables, values, arrays, num_runs):
        def run(values, arrays):
            assign_all(variables, values)
            results = fn(arrays)
            return [self.tensor(v.value) for v in variables], results

        return one_after_another(self.scan, run, values, arrays, num_runs)


def _record_registrations() -> Replacement:
    from tensorflow.python.framework.registry import Registry

    def register(original, registry, candidate, name=None):
        original(registry, candidate, name)
        # Not what a module registers that is first imported here.
        if name and name.startswith("CustomGradient-"):
            context.registered.append((registry, name))

    return function(
        Registry,
        "register",
        register,
        "TensorFlow keeps the gradients of `tf.custom_gradient`, and with them their "
        "graphs, for ever: Keras' optimizers register one at each trace",
        lambda: context.registered is not None,
    )


def _unregister(registered):
    for registry, name in registered:
        registry._registry.pop(name)


def _fast_ops(tf, scan) -> list[Replacement]:
    backend = keras.src.backend
    slow = "TensorFlow's loop, differentiated by XLA, is several times slower on CPUs"
    draws = "the random numbers that XLA chooses take 0.7 us each on CPUs"
    return [
        fast_op(backend, "lstm", fast_ops.xla_lstm, slow, scan=scan),
        fast_op(backend, "gru", fast_ops.xla_gru, slow, scan=scan),
        *(
            Replacement(module, "tf", _with_threefry, draws)
            for module in (backend.tensorflow.random, backend.tensorflow.image)
        ),
    ]


class _Overlay:
    """A module with other functions in the place of some of its own."""

    def __init__(self, module, **others):
        self._module = module
        self.__dict__.update(others)

    def __getattr__(self, name):
        return getattr(self._module, name)


def _with_threefry(tf):
    """TensorFlow as Keras' random functions see it, drawing by Threefry for XLA."""

    def draw(original, option):
        def choose(*args, **kwargs):
            if context.for_xla:
                return fast_ops.xla_draw(original, *args, option=option, **kwargs)
            return original(*args, **kwargs)

        return choose

    names = ("stateless_uniform", "stateless_normal", "stateless_truncated_normal")
    draws = {name: draw(getattr(tf.random, name), "alg") for name in names}
    dropout = draw(tf.nn.experimental.stateless_dropout, "rng_alg")
    experimental = _Overlay(tf.nn.experimental, stateless_dropout=dropout)
    return _Overlay(
        tf,
        random=_Overlay(tf.random, **draws),
        nn=_Overlay(tf.nn, experimental=experimental),
    )


def _has_convolution(graph):
    """Whether a graph, or a function that it calls, convolves."""
    graph = graph.as_graph_def()
    nodes = [graph.node, *(function.node_def for function in graph.library.function)]
    return any("Conv" in node.op for node in itertools.chain(*nodes))


def _refuse_creation(next_creator, **kwargs):
    raise ValueError(
        f"The variable {kwargs.get('name')!r} was created inside a compiled function. "
        "Build layers, models and metrics before: call `build(input_shape)`, or call "
        "them once on an example."
    )
