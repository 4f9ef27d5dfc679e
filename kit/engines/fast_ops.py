"""Faster forms of what takes longest in a compiled step: pooling, LSTM and GRU.

Keras leaves room for them: its layers ask the backend for a form of its own before
they fall back on a general one. Each function here takes the place of a function of
Keras' backend while a compiled function is traced, does the same, and hands over to
it where it has no better way (`original`). Outside of `kit.compiled`, and in Keras'
own `fit`, nothing changes. Each engine says which of them it uses, and why.

That the names in Keras' backends are where they are looked for, and that the values
and gradients are those of Keras, test_fast_ops.py checks.

Shapes: B batch, T time steps, U units.
"""

import functools
from collections.abc import Callable

import keras
from keras import ops

from kit.engines.replacements import Replacement, function

# --- XLA (JAX and TensorFlow) -------------------------------------------------


def jax_max_pool(
    original, inputs, pool_size, strides=None, padding="valid", data_format=None
):
    """Max pooling whose gradient is compared and selected, not scattered.

    XLA differentiates pooling into `select_and_scatter`, a loop over all windows on
    one core that takes longer than the convolutions. Where windows don't overlap, an
    input gets its window's gradient if it is the window's first maximum: elementwise
    work, dozens of times faster.
    """
    size = (pool_size,) * 2 if isinstance(pool_size, int) else tuple(pool_size)
    apart = strides is None or size == (
        (strides,) * 2 if isinstance(strides, int) else tuple(strides)
    )
    data_format = data_format or keras.config.image_data_format()
    whole = (original, inputs, pool_size, strides, padding, data_format)
    if inputs.ndim != 4 or len(size) != 2 or data_format != "channels_last":
        return whole[0](*whole[1:])
    if padding != "valid" or not apart:
        return whole[0](*whole[1:])
    return _apart_max_pool(original, size)(inputs)


@functools.cache
def _apart_max_pool(original, size):
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def pool(x):
        return original(x, size, size, "valid", "channels_last")

    def forward(x):
        y = pool(x)
        return y, (x, y)

    def backward(residuals, dy):
        x, y = residuals
        batch, height, width, channels = x.shape
        rows, columns = y.shape[1:3]
        windows = x[:, : rows * size[0], : columns * size[1]].reshape(
            batch, rows, size[0], columns, size[1], channels
        )
        free = jnp.ones(y.shape, bool)  # windows whose maximum isn't found yet
        dx = []
        for i in range(size[0]):
            row = []
            for j in range(size[1]):
                found = (windows[:, :, i, :, j] == y) & free
                free = free & ~found
                row.append(jnp.where(found, dy, 0))
            dx.append(jnp.stack(row, axis=3))
        dx = jnp.stack(dx, axis=2).reshape(
            batch, rows * size[0], columns * size[1], channels
        )
        # What is left over at the lower and right edge is in no window.
        rest = (height - rows * size[0], width - columns * size[1])
        return (jnp.pad(dx, ((0, 0), (0, rest[0]), (0, rest[1]), (0, 0))),)

    pool.defvjp(forward, backward)
    return pool


def xla_lstm(
    original,
    inputs,
    initial_state_h,
    initial_state_c,
    mask,
    kernel,
    recurrent_kernel,
    bias,
    activation,
    recurrent_activation,
    return_sequences=False,
    go_backwards=False,
    unroll=False,
    *,
    scan,
    **kwargs,
):
    """LSTM with few and large products, and one tanh a step.

    The inputs of all time steps are multiplied at once, and so is what the recurrent
    kernel's gradient consists of, which step by step is three times slower in small
    batches. And sigmoid(x) = (1 + tanh(x / 2)) / 2: with the halves put into the
    weights, all four gates are one tanh over a row, which XLA's CPU code vectorizes.
    """
    if mask is not None or unroll or not _is_standard(activation, recurrent_activation):
        raise NotImplementedError  # Keras goes on with its general loop
    half = ops.convert_to_tensor([0.5, 0.5, 1.0, 0.5], dtype=kernel.dtype)
    scale = ops.repeat(half, recurrent_kernel.shape[0])  # (4 U,)
    projected = ops.matmul(_time_first(inputs, go_backwards), kernel * scale)
    if bias is not None:
        projected = projected + bias * scale

    def turn(state, x, u):
        h, c = state
        gates = ops.tanh(x + ops.matmul(h, u))
        i, f, g, o = ops.split(gates, 4, axis=-1)
        new_c = 0.5 * ((f + 1) * c + (i + 1) * g)
        tanh_c = ops.tanh(new_c)
        new_h = 0.5 * (o + 1) * tanh_c
        return (new_h, new_c), (new_h, h, c, tanh_c, gates)

    @ops.custom_gradient
    def run(projected, u, h, c):
        (_, last_c), saved = scan(lambda s, x: turn(s, x, u), (h, c), projected)
        outputs, *saved = saved

        def grad(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            u_transposed = ops.transpose(u)

            def turn_back(state, slices):
                dh, dc = state
                dy, _, c, tanh_c, gates = slices
                i, f, g, o = ops.split(gates, 4, axis=-1)
                dh = dh + dy
                dc = dc + 0.5 * dh * (o + 1) * (1 - tanh_c * tanh_c)
                dx = ops.concatenate([dc * g, dc * c, dc * (i + 1), dh * tanh_c], -1)
                dx = 0.5 * dx * (1 - gates * gates)
                return (ops.matmul(dx, u_transposed), 0.5 * dc * (f + 1)), dx

            state = (ops.zeros_like(h), upstream[-1])
            slices = (upstream[:-1], *saved)
            (dh, dc), dx = scan(turn_back, state, slices, reverse=True)
            return dx, _product_over_time(saved[0], dx), dh, dc

        # One array, as `custom_gradient` has one gradient come in on PyTorch.
        return ops.concatenate([outputs, last_c[None]], axis=0), grad

    state = [_as_tensor(initial_state_h), _as_tensor(initial_state_c)]
    outputs = run(projected, recurrent_kernel * scale, *state)  # (T + 1, B, U)
    h, c, outputs = outputs[-2], outputs[-1], ops.swapaxes(outputs[:-1], 0, 1)
    return h, outputs if return_sequences else h[:, None], [h, c]


def xla_gru(
    original,
    inputs,
    initial_state,
    mask,
    kernel,
    recurrent_kernel,
    bias,
    activation,
    recurrent_activation,
    return_sequences=False,
    go_backwards=False,
    unroll=False,
    reset_after=True,
    *,
    scan,
    **kwargs,
):
    """GRU with few and large products; see `xla_lstm`."""
    if (
        mask is not None
        or unroll
        or not reset_after
        or not _is_standard(activation, recurrent_activation)
    ):
        raise NotImplementedError
    units = recurrent_kernel.shape[0]
    half = ops.convert_to_tensor([0.5, 0.5, 1.0], dtype=kernel.dtype)
    scale = ops.repeat(half, units)  # (3 U,)
    projected = ops.matmul(_time_first(inputs, go_backwards), kernel * scale)
    recurrent_bias = ops.zeros((3 * units,), dtype=projected.dtype)
    if bias is not None:
        projected = projected + bias[0] * scale
        recurrent_bias = bias[1] * scale

    def turn(h, x, u, b):
        recurrent = ops.matmul(h, u) + b
        gates = 0.5 * ops.tanh(x[:, : 2 * units] + recurrent[:, : 2 * units]) + 0.5
        z, r = gates[:, :units], gates[:, units:]
        n_recurrent = recurrent[:, 2 * units :]
        n = ops.tanh(x[:, 2 * units :] + r * n_recurrent)
        new_h = z * h + (1 - z) * n
        return new_h, (new_h, h, gates, n, n_recurrent)

    @ops.custom_gradient
    def run(projected, u, b, h):
        _, saved = scan(lambda h, x: turn(h, x, u, b), h, projected)
        outputs, *saved = saved

        def grad(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            u_transposed = ops.transpose(u)

            def turn_back(dh, slices):
                dy, h, gates, n, n_recurrent = slices
                z, r = gates[:, :units], gates[:, units:]
                dh = dh + dy
                dn = dh * (1 - z) * (1 - n * n)
                dz_dr = ops.concatenate([dh * (h - n), dn * n_recurrent], -1)
                dz_dr = 2 * dz_dr * gates * (1 - gates)
                d_recurrent = ops.concatenate([dz_dr, dn * r], -1)
                dh = dh * z + ops.matmul(d_recurrent, u_transposed)
                return dh, (ops.concatenate([dz_dr, dn], -1), d_recurrent)

            dh, (dx, d_recurrent) = scan(
                turn_back, ops.zeros_like(h), (upstream, *saved), reverse=True
            )
            du = _product_over_time(saved[0], d_recurrent)
            return dx, du, ops.sum(d_recurrent, axis=(0, 1)), dh

        return outputs, grad

    h = _as_tensor(initial_state)
    outputs = run(projected, recurrent_kernel * scale, recurrent_bias, h)  # (T, B, U)
    h, outputs = outputs[-1], ops.swapaxes(outputs, 0, 1)
    return h, outputs if return_sequences else h[:, None], [h]


def threefry_once(compile_fn: Callable[[Callable], Callable]) -> Replacement:
    """Has Threefry traced once for each shape of its counter, not at each draw.

    Args:
        compile_fn: Makes a function into one that is traced once, and called in graphs.
    """
    from kit import random

    once = functools.cache(compile_fn)
    return function(
        random,
        "_threefry",
        lambda original, *args: once(original)(*args),
        "140 operations to trace, which are always the same",
    )


def xla_draw(original, *args, option, **kwargs):
    """TensorFlow's random numbers by the Threefry algorithm.

    On CPUs, the one that XLA would choose takes 0.7 us for a number, some hundred times
    longer: most of a recurrent network's training with dropout.
    """
    return original(*args, **{option: "threefry"} | kwargs)


def _time_first(inputs, go_backwards):
    """(B, T, F) as (T, B, F), in the order in which it is read."""
    inputs = ops.swapaxes(_as_tensor(inputs), 0, 1)
    return ops.flip(inputs, axis=0) if go_backwards else inputs


def _product_over_time(a, b):
    """Sum of a^T b over all time steps and examples: one large product."""
    a = ops.reshape(a, (-1, a.shape[-1]))
    return ops.matmul(ops.transpose(a), ops.reshape(b, (-1, b.shape[-1])))


def _as_tensor(x):
    return ops.convert_to_tensor(x)


def _is_standard(activation, recurrent_activation):
    return activation is keras.activations.tanh and (
        recurrent_activation is keras.activations.sigmoid
    )


# --- PyTorch ------------------------------------------------------------------


def torch_transpose_inputs(original, inputs):
    """Channels first, as a view: Keras copies the images into that order in memory.

    PyTorch's convolutions and poolings know images whose channels lie together, and
    are faster on them.
    """
    import torch

    if inputs.ndim != 4:
        return original(inputs)
    return torch.permute(inputs, (0, 3, 1, 2))


def torch_slice_update(original, inputs, start_indices, updates):
    """An update of whole slices along one axis, in one call.

    Where the place is computed, Keras asks for that of each number.
    """
    import torch

    inputs = ops.convert_to_tensor(inputs)
    updates = ops.convert_to_tensor(updates).to(inputs.dtype)
    cut = [i for i, n in enumerate(updates.shape) if n != inputs.shape[i]]
    if len(cut) != 1 or not isinstance(start_indices, (tuple, list)):
        return original(inputs, start_indices, updates)
    (axis,) = cut
    places = torch.arange(updates.shape[axis], device=updates.device)
    return torch.index_copy(inputs, axis, start_indices[axis] + places, updates)


def torch_clip_by_global_norm(original, value_list, clip_norm):
    """Gradients shortened together, in a call for all of them instead of one for each.

    As Keras has it, they become NaN where the norm isn't finite.
    """
    import torch

    values = [_as_tensor(value) for value in value_list if value is not None]
    if not values:
        return original(value_list, clip_norm)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(values)))
    scale = clip_norm / torch.clamp(norm, min=clip_norm) + (norm - norm)
    clipped = iter(torch._foreach_mul(values, scale))
    return [None if value is None else next(clipped) for value in value_list]


def torch_lstm(
    original,
    inputs,
    initial_state_h,
    initial_state_c,
    mask,
    kernel,
    recurrent_kernel,
    bias,
    activation,
    recurrent_activation,
    return_sequences=False,
    go_backwards=False,
    unroll=False,
    **kwargs,
):
    """LSTM by PyTorch's own operator, which oneDNN fuses over all time steps."""
    import torch

    if mask is not None or unroll or not _is_standard(activation, recurrent_activation):
        raise NotImplementedError
    weights = _torch_weights(kernel, recurrent_kernel, bias, [0, 1, 2, 3])
    state = [_as_tensor(initial_state_h)[None], _as_tensor(initial_state_c)[None]]
    x = torch.flip(inputs, [1]) if go_backwards else inputs
    has_bias, train = bias is not None, torch.is_grad_enabled()
    outputs, h, c = torch.lstm(x, state, weights, has_bias, 1, 0.0, train, False, True)
    h, c = h[0], c[0]
    return h, outputs if return_sequences else h[:, None], [h, c]


def torch_gru(
    original,
    inputs,
    initial_state,
    mask,
    kernel,
    recurrent_kernel,
    bias,
    activation,
    recurrent_activation,
    return_sequences=False,
    go_backwards=False,
    unroll=False,
    reset_after=True,
    **kwargs,
):
    """GRU by PyTorch's own operator; see `torch_lstm`."""
    import torch

    if (
        mask is not None
        or unroll
        or not reset_after
        or not _is_standard(activation, recurrent_activation)
    ):
        raise NotImplementedError
    # Keras has the gates in the order z, r, n; PyTorch r, z, n.
    weights = _torch_weights(kernel, recurrent_kernel, bias, [1, 0, 2])
    state = _as_tensor(initial_state)[None]
    x = torch.flip(inputs, [1]) if go_backwards else inputs
    has_bias, train = bias is not None, torch.is_grad_enabled()
    outputs, h = torch.gru(x, state, weights, has_bias, 1, 0.0, train, False, True)
    return h[0], outputs if return_sequences else h[0][:, None], [h[0]]


def torch_lstm_forward(*args):
    """`mkldnn_rnn_layer`, which leaves out what its gradient needs under `no_grad`."""
    import torch

    with torch.enable_grad():
        detached = [x.detach() if torch.is_tensor(x) else x for x in args]
        return torch.ops.aten.mkldnn_rnn_layer.default(*detached)


def _torch_weights(kernel, recurrent_kernel, bias, order):
    """Weights in PyTorch's layout: (gates x U, inputs), gates in `order`."""
    import torch

    def arrange(x):
        gates = torch.chunk(_as_tensor(x), len(order), dim=-1)
        return torch.cat([gates[i] for i in order], dim=-1).mT.contiguous()

    def arrange_bias(x):
        gates = torch.chunk(x, len(order), dim=-1)
        return torch.cat([gates[i] for i in order], dim=-1)

    weights = [arrange(kernel), arrange(recurrent_kernel)]
    if bias is not None:
        bias = _as_tensor(bias)
        # The LSTM of Keras has one bias, its GRU one for inputs and one for states.
        both = bias if bias.ndim == 2 else torch.stack([bias, torch.zeros_like(bias)])
        weights += [arrange_bias(both[0]), arrange_bias(both[1])]
    return weights
