"""Sums of weighted bilinear samples on a GPU: kernels on the Triton backend of Pallas.

The operators of `gpu` differ only in where their sampling points lie, which a `Sampling` says.
Output row m (the channels of one place and one group or head) is the sum over its K points of
weight × the four pixels around the point, each times its bilinear weight. A program handles a
block of rows; `block_sizes` says how many. The kernels do little but read and write, so what they
read they turn into rows of the value themselves; a pass before them would write and read it once
more. Points are a loop, not unrolled: 48 registers a thread at most (sm_90a) leave room for 40
warps on a multiprocessor to hide the latency, and a kernel compiles in about a second.

Backward: one kernel gathers the same pixels again for the gradients of coordinates and weights.
Another adds weight × cotangent into a zeroed float32 buffer by atomics; it is a kernel of its own
because Pallas fences every atomic, which gathers beside them would have to wait for. The order of
atomics differs from run to run, and with it the rounding; the deterministic alternative sorts all
shares by the row that they go to, which then collects them in that order.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from pallas_kernels.bilinear_rows import Plane, Points, corners
from pallas_kernels.gpu.block_sizes import BlockSize, Kernel

FLOAT32_BYTES = 4


class Sampling(Protocol):
    """Where the sampling points of an operator lie; static and hashable."""

    name: str
    points: int  # of every output row

    def place(
        self,
        row: Int[Array, "m"],
        point: Int[Array, ""],
        x: Float[Array, "m"],
        y: Float[Array, "m"],
        weight: Float[Array, "m"],
    ) -> tuple[Plane, Points, tuple[Float[Array, ""], Float[Array, ""]]]:
        """One point of some output rows, and how many pixels a step of one in x and in y is."""


class Run(NamedTuple):
    """How the kernels run; static and hashable."""

    deterministic: bool
    interpret: bool
    block_size: Callable[[Kernel], BlockSize]


class Tile(NamedTuple):
    """What a program handles: a block of rows with all their channels."""

    rows: int  # of all programs together
    channels: int  # a power of two
    block: int

    def row(self) -> Int[Array, "block"]:
        return pl.program_id(0) * self.block + jnp.arange(self.block)

    def last_row_repeated(self) -> Int[Array, "block"]:
        """Instead of rows past the end, which kernels would have to mask wherever they write."""
        return jnp.minimum(self.row(), self.rows - 1)

    def elements(self, row: Int[Array, "block"]) -> Int[Array, "block channels"]:
        return row[:, None] * self.channels + jnp.arange(self.channels)[None]


def _launch(body, kernel, rows, outputs, *operands, run, aliases=None):
    """Runs the kernel over all rows, on flat operands; gives flat outputs."""
    size = run.block_size(kernel)
    return pl.pallas_call(
        functools.partial(body, Tile(rows, kernel.channels, size.rows)),
        out_shape=outputs,
        grid=(pl.cdiv(rows, size.rows),),
        input_output_aliases=aliases or {},
        compiler_params=triton.CompilerParams(num_warps=size.warps, num_stages=1),
        interpret=run.interpret,
        name=f"jaxseg_{kernel.name}",
    )(*(operand.reshape(-1) for operand in operands))


def _read_point(sampling, row, point, coordinates, weights):
    """What `sampling.place` makes of one point of every row."""
    entry = row * sampling.points + point
    x = triton.load(coordinates.at[2 * entry])
    y = triton.load(coordinates.at[2 * entry + 1])
    weight = triton.load(weights.at[entry])
    return sampling.place(row, point, *(a.astype(jnp.float32) for a in (x, y, weight)))


def _load_rows(ref, tile, row, inside):
    """Rows as float32, zeros where not `inside`; those are not read."""
    rows = triton.load(ref.at[tile.elements(row)], mask=inside[:, None], other=0)
    return rows.astype(jnp.float32)


def _forward_kernel(sampling, tile, value, coordinates, weights, output):
    """Rows of output: sums over their points."""
    row = tile.last_row_repeated()

    def add_point(point, total):
        plane, points, _ = _read_point(sampling, row, point, coordinates, weights)
        for corner in corners(plane, points):
            pixels = _load_rows(value, tile, corner.row, corner.inside)
            total += (corner.weight * points.weight)[:, None] * pixels
        return total

    zero = jnp.zeros((tile.block, tile.channels), jnp.float32)
    total = lax.fori_loop(0, sampling.points, add_point, zero)
    triton.store(output.at[tile.elements(row)], total.astype(output.dtype))


def _points_gradient_kernel(
    sampling, tile, value, coordinates, weights, cotangent, coordinates_gradient, weights_gradient
):
    """Rows of output: the gradients of what places and weighs their points."""
    row = tile.last_row_repeated()
    cotangent = triton.load(cotangent.at[tile.elements(row)]).astype(jnp.float32)

    def transpose_point(point, _):
        plane, points, (per_x, per_y) = _read_point(sampling, row, point, coordinates, weights)
        x = y = weight = jnp.zeros(tile.block, jnp.float32)
        for corner in corners(plane, points):
            pixels = _load_rows(value, tile, corner.row, corner.inside)
            product = jnp.sum(pixels * cotangent, axis=1)
            x += corner.slope_x * product
            y += corner.slope_y * product
            weight += corner.weight * product
        entry = row * sampling.points + point
        triton.store(coordinates_gradient.at[2 * entry], x * points.weight * per_x)
        triton.store(coordinates_gradient.at[2 * entry + 1], y * points.weight * per_y)
        triton.store(weights_gradient.at[entry], weight)

    lax.fori_loop(0, sampling.points, transpose_point, None)


def _value_gradient_kernel(
    sampling, interpret, tile, coordinates, weights, cotangent, zeros, value_gradient
):
    """Rows of output: adds their shares to the rows of the value, which begin as `zeros`."""
    del zeros  # the same memory as `value_gradient`
    row = tile.last_row_repeated()
    is_first = row == tile.row()
    cotangent = triton.load(cotangent.at[tile.elements(row)]).astype(jnp.float32)

    def transpose_point(point, _):
        plane, points, _ = _read_point(sampling, row, point, coordinates, weights)
        for corner in corners(plane, points):
            share = (corner.weight * points.weight)[:, None] * cotangent
            counts = (corner.inside & is_first)[:, None]
            _atomic_add(value_gradient, tile.elements(corner.row), share, counts, interpret)

    lax.fori_loop(0, sampling.points, transpose_point, None)


def _atomic_add(ref, index, update, mask, interpret):
    """Adds `update` where `mask`; an element may be met several times."""
    if interpret:  # has atomics neither with masks nor with an element met twice
        ref[...] = ref[...].at[index].add(jnp.where(mask, update, 0))
    else:
        triton.atomic_add(ref, (index,), update, mask=jnp.broadcast_to(mask, index.shape))


def _value_gradient_by_atomics(value, coordinates, weights, cotangent, sampling, run):
    rows, channels = cotangent.shape
    return _launch(
        functools.partial(_value_gradient_kernel, sampling, run.interpret),
        Kernel(f"{sampling.name}_value_gradient", channels, FLOAT32_BYTES),
        rows,
        jax.ShapeDtypeStruct((value.size,), jnp.float32),
        *(coordinates, weights, cotangent, jnp.zeros(value.size, jnp.float32)),
        run=run,
        aliases={3: 0},
    )


def _collect_kernel(sources, tile, order, starts, weights, cotangent, value_gradient):
    """Rows of the value: sums over their shares, which `order` has side by side from `starts`."""
    row = tile.last_row_repeated()
    start = triton.load(starts.at[row])
    count = triton.load(starts.at[row + 1]) - start

    def add_share(i, total):
        more = i < count
        share = triton.load(order.at[start + i], mask=more, other=0)
        rows = _load_rows(cotangent, tile, lax.rem(share, sources), more)
        return total + triton.load(weights.at[share])[:, None] * rows

    zero = jnp.zeros((tile.block, tile.channels), jnp.float32)
    total = lax.fori_loop(0, jnp.max(count), add_share, zero)
    triton.store(value_gradient.at[tile.elements(row)], total)


def _value_gradient_in_order(value, coordinates, weights, cotangent, sampling, run):
    """The same without atomics: every row of the value collects its shares, always in one order."""
    sources, targets = len(cotangent), len(value)
    coordinates, weights = coordinates.astype(jnp.float32), weights.astype(jnp.float32)

    def point_shares(point):
        x, y, weight = coordinates[:, point, 0], coordinates[:, point, 1], weights[:, point]
        plane, points, _ = sampling.place(jnp.arange(sources), point, x, y, weight)
        shares = list(corners(plane, points))
        return (
            jnp.stack([jnp.where(corner.inside, corner.row, targets) for corner in shares]),
            jnp.stack([corner.weight * weight for corner in shares]),
        )

    target, share_weights = lax.map(point_shares, jnp.arange(sampling.points))  # [k, 4, m]
    target, order = lax.sort_key_val(target.reshape(-1), jnp.arange(target.size))  # stable
    return _launch(
        functools.partial(_collect_kernel, sources),
        Kernel(f"{sampling.name}_value_gradient_in_order", value.shape[-1], FLOAT32_BYTES),
        targets,
        jax.ShapeDtypeStruct((value.size,), jnp.float32),
        *(order, jnp.searchsorted(target, jnp.arange(targets + 1)), share_weights, cotangent),
        run=run,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _sum_of_samples(value, coordinates, weights, sampling, run):
    return _forward(value, coordinates, weights, sampling, run)[0]


def _forward(value, coordinates, weights, sampling, run):
    rows, channels = len(weights), value.shape[-1]
    output = _launch(
        functools.partial(_forward_kernel, sampling),
        Kernel(f"{sampling.name}_forward", channels, value.dtype.itemsize),
        rows,
        jax.ShapeDtypeStruct((rows * channels,), value.dtype),
        *(value, coordinates, weights),
        run=run,
    )
    return output.reshape(rows, channels), (value, coordinates, weights)


def _backward(sampling, run, residuals, cotangent):
    value, coordinates, weights = residuals
    rows, channels = cotangent.shape
    coordinates_gradient, weights_gradient = _launch(
        functools.partial(_points_gradient_kernel, sampling),
        Kernel(f"{sampling.name}_points_gradient", channels, value.dtype.itemsize),
        rows,
        [jax.ShapeDtypeStruct((a.size,), jnp.float32) for a in (coordinates, weights)],
        *(value, coordinates, weights, cotangent),
        run=run,
    )
    of_value = _value_gradient_in_order if run.deterministic else _value_gradient_by_atomics
    value_gradient = of_value(value, coordinates, weights, cotangent, sampling, run)
    return tuple(
        gradient.reshape(primal.shape).astype(primal.dtype)
        for gradient, primal in zip(
            (value_gradient, coordinates_gradient, weights_gradient), residuals, strict=True
        )
    )


_sum_of_samples.defvjp(_forward, _backward)


def sum_of_samples(
    value: Float[Array, "r c"],
    coordinates: Float[Array, "m k 2"],
    weights: Float[Array, "m k"],
    sampling: Sampling,
    run: Run,
) -> Float[Array, "m c"]:
    """Every output row's sum over its points."""
    channels = value.shape[-1]
    if not weights.size:
        return jnp.zeros((len(weights), channels), value.dtype)
    missing = pl.next_power_of_2(channels) - channels  # Triton's blocks have powers of two
    value = jnp.pad(value, ((0, 0), (0, missing)))
    output = _sum_of_samples(value, coordinates, weights, sampling, run)
    return output[:, :channels]
