"""Sums of weighted bilinear samples on a GPU: kernels on the Triton backend of Pallas.

The operators differ only in where their sampling points lie, which a `Sampling` defines. Output row
m holds the channels of one place and one group or head. It is the sum over its K points of weight ×
the four pixels around the point, each times its bilinear weight.

A program handles a block of rows, whose size comes from `block_sizes`. The kernels do little but
read and write memory. They convert the coordinates that they read to rows of the value themselves,
because a separate pass would write and read them once more. Points are a loop and are not unrolled.
At most 48 registers a thread (sm_90a) then leave room for 40 warps on a multiprocessor, which hide
the latency, and a kernel compiles in about a second.

In the backward pass, one kernel gathers the same pixels again for the gradients of coordinates and
weights. Another kernel adds weight × cotangent into a zeroed float32 buffer with atomics. It is a
separate kernel because Pallas fences every atomic, and gathers in the same kernel would have to
wait for the fence. The order of the atomics differs from run to run, and with it the rounding. The
deterministic alternative sorts all shares by the row that they go to. Each row then collects its
shares in that order.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Integer

from pallas_kernels.gpu.block_sizes import BlockSize, Kernel
from pallas_kernels.gpu.corners import Plane, Points, corners

FLOAT32_BYTES = 4


@runtime_checkable
class Sampling(Protocol):
    """Defines where the sampling points of an operator lie; static and hashable.

    Attributes:
      name: the name of the operator.
      points: the number of points of every output row.
    """

    name: str
    points: int

    def place(
        self,
        row: Integer[Array, " m"],
        point: Integer[Array, ""],
        x: Float[Array, " m"],
        y: Float[Array, " m"],
        weight: Float[Array, " m"],
    ) -> tuple[Plane, Points, tuple[Float[Array, ""], Float[Array, ""]]]:
        """Places one point of some output rows.

        Args:
          row: the output rows.
          point: the index of the point.
          x: the x coordinates of the point, as the operator takes them.
          y: the y coordinates of the point, as the operator takes them.
          weight: the factors of the samples.

        Returns:
          The plane, the points, and how many pixels a step of one in x and in y is.
        """


class Run(NamedTuple):
    """Holds the options of the kernels; static and hashable.

    Attributes:
      deterministic: whether the value's gradient is summed in a fixed order, without atomics.
      interpret: whether the kernels run in Pallas's interpreter.
      block_size: returns the block size of a kernel.
    """

    deterministic: bool
    interpret: bool
    block_size: Callable[[Kernel], BlockSize]


class Tile(NamedTuple):
    """Describes what one program handles: a block of rows with all their channels.

    Attributes:
      rows: the rows of all programs together.
      channels: the channels of a row, a power of two.
      block: the rows of one program.
    """

    rows: int
    channels: int
    block: int

    def row(self) -> Integer[Array, " block"]:
        """Returns the rows of this program, which may reach past the end."""
        return pl.program_id(0) * self.block + jnp.arange(self.block)

    def last_row_repeated(self) -> Integer[Array, " block"]:
        """Returns the rows of this program, with the last row in place of any past the end.

        Kernels would otherwise have to mask them at every write.
        """
        return jnp.minimum(self.row(), self.rows - 1)

    def elements(self, row: Integer[Array, " block"]) -> Integer[Array, "block channels"]:
        """Returns the indices of the elements of some rows in a flat array."""
        return row[:, None] * self.channels + jnp.arange(self.channels)[None]


def _launch(body, kernel, rows, outputs, *operands, run, aliases=None):
    """Runs the kernel over all rows, on flat operands, and returns flat outputs."""
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
    """Reads one point of every row and places it with `sampling.place`."""
    entry = row * sampling.points + point
    x = triton.load(coordinates.at[2 * entry])
    y = triton.load(coordinates.at[2 * entry + 1])
    weight = triton.load(weights.at[entry])
    return sampling.place(row, point, *(a.astype(jnp.float32) for a in (x, y, weight)))


def _load_rows(ref, tile, row, inside):
    """Loads rows as float32; rows that are not `inside` are zeros and are not read."""
    rows = triton.load(ref.at[tile.elements(row)], mask=inside[:, None], other=0)
    return rows.astype(jnp.float32)


def _forward_kernel(sampling, tile, value, coordinates, weights, output):
    """Computes rows of output: sums over their points."""
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
    """Computes, for rows of output, the gradients of their points' coordinates and weights."""
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
    """Adds the shares of rows of output to the rows of the value, which begin as `zeros`."""
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
    """Adds `update` where `mask` is true; an index may occur several times."""
    if interpret:  # its atomics support neither masks nor repeated indices
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
    """Computes rows of the value's gradient: sums over their shares.

    `order` holds the shares of each row side by side, and `starts` holds where they begin.
    """
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
    """Computes the value's gradient without atomics.

    Every row of the value collects its shares, always in the same order.
    """
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
    """Computes the sum over the points of every output row.

    Args:
      value: the rows that are sampled.
      coordinates: x and y of each point, as `sampling` takes them.
      weights: the factor of each sample.
      sampling: where the points lie.
      run: the options of the kernels.
    """
    channels = value.shape[-1]
    if not weights.size:
        return jnp.zeros((len(weights), channels), value.dtype)
    missing = pl.next_power_of_2(channels) - channels  # Triton's block sizes are powers of two
    value = jnp.pad(value, ((0, 0), (0, missing)))
    output = _sum_of_samples(value, coordinates, weights, sampling, run)
    return output[:, :channels]
