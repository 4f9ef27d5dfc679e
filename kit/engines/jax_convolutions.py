"""Convolutions on JAX, in the form that XLA compiles well on CPUs, also in loops.

XLA has a fast routine for convolutions whose axes are in one order: images (batch,
spatial axes, channels), kernels (spatial axes, inputs, outputs). It brings others into
that order, but only outside of loops and branches. JAX writes the gradients in other
orders, so a `scan` that trains a network spends nine tenths of its time on them. Here,
convolutions and their gradients are transposed into that order.

Strides and distances between pixels make XLA multiply zeros, mostly in gradients and in
transposed convolutions. Where blocks of pixels can be channels instead, they are.

Values and gradients are those of Keras' layers, which test_fast_ops.py checks. There is
no forward-mode derivative (`jax.jvp`), which Keras doesn't use.

Shapes: B batch, H and W height and width, C channels, O outputs; with one or three
spatial axes accordingly.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

# JAX's own, which a trace replaces by `conv_general_dilated`.
_jax_convolution = jax.lax.conv_general_dilated


class Window(NamedTuple):
    """How a kernel moves over an image; an entry for each spatial axis.

    Attributes:
        strides: Steps of the kernel, in pixels.
        padding: Numbers of zeros before and after the image.
        input_dilation: Distances of pixels; zeros are in between.
        kernel_dilation: Distances of the kernel's entries.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]


def plain_window(padding):
    """Returns a window without strides and dilation."""
    ones = (1,) * len(padding)
    return Window(ones, tuple(map(tuple, padding)), ones, ones)


def conv_general_dilated(
    original,
    lhs,
    rhs,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count=1,
    *rest,
    **options,
):
    """Takes the place of `jax.lax.conv_general_dilated`; see there."""
    named = isinstance(padding, str)
    if rest or options or (named and lhs_dilation) or lhs.dtype != rhs.dtype:
        return original(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            *rest,
            **options,
        )
    orders = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    batch, channels, *spatial = orders.lhs_spec
    x = jnp.transpose(lhs, (batch, *spatial, channels))
    outputs, inputs, *spatial = orders.rhs_spec
    kernel = jnp.transpose(rhs, (*spatial, inputs, outputs))
    ones = (1,) * len(spatial)
    rhs_dilation = tuple(rhs_dilation or ones)
    if named:
        sizes = list(map(_dilated, kernel.shape, rhs_dilation))
        padding = jax.lax.padtype_to_pads(x.shape[1:-1], sizes, window_strides, padding)
    window = Window(
        tuple(window_strides),
        tuple(map(tuple, padding)),
        tuple(lhs_dilation or ones),
        rhs_dilation,
    )
    y = _in_groups(x, kernel, window, feature_group_count)
    batch, channels, *spatial = orders.out_spec
    order = (batch, *spatial, channels)
    return jnp.transpose(y, [order.index(axis) for axis in range(y.ndim)])


def conv_transpose(
    original, lhs, rhs, strides, padding, rhs_dilation, dimension_numbers, **options
):
    """Takes the place of `jax.lax.conv_transpose`, as Keras calls it."""
    if isinstance(padding, str) or options != {"transpose_kernel": True}:
        return original(
            lhs, rhs, strides, padding, rhs_dilation, dimension_numbers, **options
        )
    orders = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    outputs, inputs, *spatial = orders.rhs_spec
    return conv_general_dilated(
        _jax_convolution,
        lhs,
        jnp.swapaxes(jnp.flip(rhs, spatial), outputs, inputs),
        (1,) * len(spatial),
        padding,
        strides,
        rhs_dilation,
        dimension_numbers,
    )


def _in_groups(x, kernel, window, groups):
    """Convolves groups of channels separately, which JAX makes one convolution of."""
    if groups == 1:
        return _convolve(x, kernel, window)
    x = x.reshape(*x.shape[:-1], groups, -1)
    kernel = kernel.reshape(*kernel.shape[:-1], groups, -1)
    convolve = jax.vmap(functools.partial(_convolve, window=window), (-2, -2), -2)
    y = convolve(x, kernel)
    return y.reshape(*y.shape[:-2], -1)


# --- Without strides, without zeros ---------------------------------------------


def _convolve(x, kernel, window):
    """Returns `x` (B, H, W, C) convolved with a kernel (height, width, C, O)."""
    strides, padding, input_dilation, kernel_dilation = window
    sizes = kernel.shape[:-2]
    steps = [  # of the kernel, from end to end
        (_dilated(n, distance) + sum(pad) - size) // stride + 1
        for n, distance, pad, size, stride in zip(
            x.shape[1:-1], input_dilation, padding, sizes, strides, strict=True
        )
    ]
    if max(kernel_dilation) == 1 and min(steps) > 0:
        divided = [k % stride == 0 for k, stride in zip(sizes, strides, strict=True)]
        if max(input_dilation) == 1 < max(strides) and all(divided):
            return _convolve_blocks(x, kernel, window, steps)
        if max(strides) == 1 < max(input_dilation):
            return _convolve_to_blocks(x, kernel, window)
    return _convolution(x, kernel, window)


def _convolve_blocks(x, kernel, window, steps):
    """A convolution with strides as one of blocks of pixels, without strides.

    With strides (s, t), images (B, H, W, C) become (B, H/s, W/t, s t C), and so does
    the kernel.
    """
    strides, edges = window.strides, []
    for axis, (before, _) in enumerate(window.padding):
        reached = (steps[axis] - 1) * strides[axis] + kernel.shape[axis]
        edges.append((before, reached - x.shape[axis + 1] - before))
    x = _blocks_to_channels(_pad(x, 1, edges), 1, strides)
    kernel = _blocks_to_channels(kernel, 0, strides)
    return _convolution(x, kernel, plain_window([(0, 0)] * len(strides)))


def _convolve_to_blocks(x, kernel, window):
    """A convolution of pixels that lie apart as one that gives a block for each.

    With distances (s, t), the results (B, H, W, s t O) are (B, s H, t W, O).
    """
    distances, sizes = window.input_dilation, kernel.shape[:-2]
    num_axes = len(sizes)
    filled = [(-k % d, 0) for k, d in zip(sizes, distances, strict=True)]
    kernel = _blocks_to_channels(
        jnp.swapaxes(_pad(kernel, 0, filled), -1, -2), 0, distances
    )
    blocks, inputs = kernel.shape[:num_axes], kernel.shape[-1]
    # The kernel's last entry meets the first pixel of a block.
    kernel = kernel.reshape(*blocks, *distances, -1, inputs)
    kernel = jnp.flip(kernel, range(num_axes, 2 * num_axes))
    kernel = jnp.swapaxes(kernel.reshape(*blocks, -1, inputs), -1, -2)
    around = [(size - 1, size - 1) for size in blocks]
    y = _channels_to_blocks(_convolution(x, kernel, plain_window(around)), 1, distances)
    edges = []  # what `y` has too little or too much, as it is padded on all sides
    for axis, (before, after) in enumerate(window.padding):
        first = before - sizes[axis] + 1
        size = _dilated(x.shape[axis + 1], distances[axis]) + first + after
        edges.append((first, size - y.shape[axis + 1] - first))
    return _pad(y, 1, edges)


def _blocks_to_channels(x, first, sizes):
    """Blocks along the axes from `first` on become part of the axis behind these."""
    end = first + len(sizes)
    blocks = [n // size for n, size in zip(x.shape[first:end], sizes, strict=True)]
    split = [n for pair in zip(blocks, sizes, strict=True) for n in pair]
    channels, *others = x.shape[end:]
    x = x.reshape(*x.shape[:first], *split, channels, *others)
    axes = list(range(x.ndim))
    end = first + len(split)
    axes[first:end] = axes[first:end:2] + axes[first + 1 : end : 2]
    x = x.transpose(axes)
    return x.reshape(*x.shape[:first], *blocks, math.prod(sizes) * channels, *others)


def _channels_to_blocks(x, first, sizes):
    """The inverse of `_blocks_to_channels`, where the last axis is the channels."""
    count = len(sizes)
    blocks = x.shape[first : first + count]
    x = x.reshape(*x.shape[: first + count], *sizes, -1)
    axes = [a for i in range(first, first + count) for a in (i, i + count)]
    x = x.transpose([*range(first), *axes, x.ndim - 1])
    whole = [n * size for n, size in zip(blocks, sizes, strict=True)]
    return x.reshape(*x.shape[:first], *whole, x.shape[-1])


# --- The convolution and its gradients ------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolution(x, kernel, window):
    """Returns `x` (B, H, W, C) convolved with a kernel (height, width, C, O)."""
    last = x.ndim - 1
    if math.prod(kernel.shape[:-2]) > math.prod(x.shape[1:-1]):
        # XLA would exchange image and kernel, and be slow at what results. It doesn't
        # where the zeros belong to the image, behind a barrier.
        x = _pad(x, 1, window.padding, window.input_dilation)
        x = jax.lax.optimization_barrier(x)
        plain = plain_window([(0, 0)] * (last - 1))
        window = window._replace(padding=plain.padding, input_dilation=plain.strides)
    image = (0, last, *range(1, last))
    orders = jax.lax.ConvDimensionNumbers(
        image, (last, last - 1, *range(last - 1)), image
    )
    return _jax_convolution(x, kernel, *window, orders)


def _forward(x, kernel, window):
    return _convolution(x, kernel, window), (x, kernel)


def _backward(window, residuals, dy):
    x, kernel = residuals
    strides, padding, input_dilation, kernel_dilation = window
    x_padding, kernel_padding = [], []
    for axis, (before, _) in enumerate(padding):
        n = _dilated(x.shape[axis + 1], input_dilation[axis])
        k = _dilated(kernel.shape[axis], kernel_dilation[axis])
        m = _dilated(dy.shape[axis + 1], strides[axis])
        x_padding.append((k - 1 - before, n - m + before))
        kernel_padding.append((before, k - 1 + m - n - before))
    # 1. An output's gradient goes where its inputs were: dy, with zeros where the
    # kernel didn't stop, convolved with the kernel in reverse.
    reverse = jnp.flip(kernel, range(len(strides))).swapaxes(-1, -2)
    window = Window(input_dilation, tuple(x_padding), strides, kernel_dilation)
    dx = _convolve(dy, reverse, window)
    # 2. The kernel's gradient is the product of x and dy over all places and images:
    # here the images are channels, and the channels images.
    window = Window(kernel_dilation, tuple(kernel_padding), input_dilation, strides)
    dkernel = _convolve(x.swapaxes(0, -1), jnp.moveaxis(dy, 0, -2), window)
    return dx, jnp.moveaxis(dkernel, 0, -2)


_convolution.defvjp(_forward, _backward)


def _pad(x, first, edges, distances=None):
    """Zeros before, after and between entries, along the axes from `first` on."""
    between = [n - 1 for n in distances or [1] * len(edges)]
    config = [(0, 0, 0)] * x.ndim
    config[first : first + len(edges)] = [
        (*pad, n) for pad, n in zip(edges, between, strict=True)
    ]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), config)


def _dilated(size, distance):
    """What a size becomes with zeros in between."""
    return (size - 1) * distance + 1 if size else 0
