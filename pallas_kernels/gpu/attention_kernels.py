"""Self-attention on a GPU without an array of queries × keys: kernels on Pallas's Triton backend.

A program handles a block of tokens of one image and one head, and reads the other tokens block by
block (FlashAttention-2, arXiv:2307.08691). Logits are base-2 logarithms. The forward pass keeps
their log-sum per query, from which the backward pass computes the weights again.

Nothing is summed with atomics: the gradients have the same bits in every run. The gradient of the
biases has a kernel of its own. A program of it sums the pairs of grid rows with one distance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Integer

from pallas_kernels.gpu.attention_bias import LOG2E, entries_of_pairs

SMALLEST_PRODUCT = 16  # rows and columns of a matrix product in Triton


class Layout(NamedTuple):
    """Holds the static sizes of a call.

    Attributes:
      images: the number of images.
      tokens: the number of tokens of an image.
      heads: the number of heads.
      channels: the channels of a head, a power of two.
      grid: height and width of the grid of patches, or None without biases.
      block: the queries or keys of a block.
      interpret: whether the kernels run in Pallas's interpreter.
    """

    images: int
    tokens: int
    heads: int
    channels: int
    grid: tuple[int, int] | None
    block: int
    interpret: bool

    @property
    def blocks(self) -> int:
        """The number of blocks of queries, and of keys."""
        return pl.cdiv(self.tokens, self.block)

    def tokens_of(self, block: Integer[Array, ""]) -> Integer[Array, " m"]:
        """Returns the tokens of a block, some of which may be past the last one."""
        return block * self.block + jnp.arange(self.block)

    @property
    def scale(self) -> float:
        """The factor of the products of queries and keys."""
        return self.channels**-0.5

    @property
    def row_block(self) -> int:
        """A row of the grid, filled up to the size of a product."""
        return max(SMALLEST_PRODUCT, pl.next_power_of_2(self.grid[1]))


class Memory(NamedTuple):
    """Reads and writes blocks of one image and one head.

    Attributes:
      layout: the static sizes.
      image: the index of the image.
      head: the index of the head.
      entries: the table of every head, or None without biases.
    """

    layout: Layout
    image: Integer[Array, ""]
    head: Integer[Array, ""]
    entries: jax.Ref | None

    def inside(self, token):
        """Returns which tokens are not past the last one."""
        return token < self.layout.tokens

    def _vectors_at(self, ref, token, part=0):
        _, tokens, heads, channels = self.layout[:4]
        parts = ref.shape[1] // (tokens * heads * channels)
        first = ((token * parts + part) * heads + self.head) * channels
        return ref.at[self.image, first[:, None] + jnp.arange(channels)[None]]

    def vectors(self, ref, token, part=0):
        """Returns the vectors of tokens, zeros past the last one.

        Args:
          ref: the vectors of every image, one or three for each token and head.
          token: the tokens.
          part: which of the three.
        """
        place = self._vectors_at(ref, token, part)
        return triton.load(place, mask=self.inside(token)[:, None], other=0)

    def store_vectors(self, ref, token, vectors):
        """Writes the vectors of tokens, except past the last one."""
        place = self._vectors_at(ref, token)
        triton.store(place, vectors.astype(ref.dtype), mask=self.inside(token)[:, None])

    def _numbers_at(self, ref, token):
        return ref.at[self.image, self.head * self.layout.tokens + token]

    def numbers(self, ref, token, other):
        """Returns one number for each token, and `other` past the last one."""
        return triton.load(self._numbers_at(ref, token), mask=self.inside(token), other=other)

    def store_numbers(self, ref, token, numbers):
        """Writes one number for each token, except past the last one."""
        triton.store(self._numbers_at(ref, token), numbers, mask=self.inside(token))

    def logits(self, query, key, query_token, key_token):
        """Returns the logits of a block of pairs."""
        logits = _product(query, key, axes=(1, 1)) * (LOG2E * self.layout.scale)
        if self.entries is None:
            return logits
        entry = entries_of_pairs(query_token, key_token, self.layout.grid)
        return logits + triton.load(self.entries.at[self.head, entry])


def _product(a, b, axes=(1, 0)):
    """Multiplies two blocks over one axis of each; sums are in float32."""
    dimensions = tuple((axis,) for axis in axes), ((), ())
    return lax.dot_general(
        a, b, dimensions, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


QUERY, KEY, VALUE = range(3)


def _program(layout, entries):
    """Returns the memory of this program, and its tokens."""
    image, head, block = map(pl.program_id, range(3))
    return Memory(layout, image, head, *(entries or [None])), layout.tokens_of(block)


def forward_kernel(layout, qkv, *refs):
    """Computes the output and the log-sums of a block of queries."""
    *entries, output, log_sum = refs
    memory, query_token = _program(layout, entries)
    query = memory.vectors(qkv, query_token, QUERY)

    def add_keys(block, carry):
        largest, total, attended = carry
        key_token = layout.tokens_of(block)
        key = memory.vectors(qkv, key_token, KEY)
        value = memory.vectors(qkv, key_token, VALUE)
        logits = memory.logits(query, key, query_token, key_token)
        logits = jnp.where(memory.inside(key_token)[None], logits, -jnp.inf)
        larger = jnp.maximum(largest, logits.max(axis=1))
        weights = jnp.exp2(logits - larger[:, None])
        shrink = jnp.exp2(largest - larger)
        attended = attended * shrink[:, None] + _product(weights.astype(value.dtype), value)
        return larger, total * shrink + weights.sum(axis=1), attended

    largest = jnp.full(layout.block, -jnp.inf, jnp.float32)
    nothing = jnp.zeros((layout.block, layout.channels), jnp.float32)
    start = largest, jnp.zeros_like(largest), nothing
    largest, total, attended = lax.fori_loop(0, layout.blocks, add_keys, start)
    memory.store_vectors(output, query_token, attended / total[:, None])
    memory.store_numbers(log_sum, query_token, largest + jnp.log2(total))


class Queries(NamedTuple):
    """Holds a block of queries and what belongs to them.

    Attributes:
      token: the tokens.
      vectors: their queries.
      cotangent: the cotangents of their outputs.
      log_sum: the log-sums of their logits.
      product: the inner products of their outputs with the cotangents.
    """

    token: Integer[Array, " m"]
    vectors: Float[Array, "m d"]
    cotangent: Float[Array, "m d"]
    log_sum: Float[Array, " m"]
    product: Float[Array, " m"]


class Keys(NamedTuple):
    """Holds a block of keys and their values.

    Attributes:
      token: the tokens.
      vectors: their keys.
      values: their values.
    """

    token: Integer[Array, " m"]
    vectors: Float[Array, "m d"]
    values: Float[Array, "m d"]


class Residuals(NamedTuple):
    """Holds what the kernels of the backward pass read, of all images.

    Attributes:
      qkv: queries, keys and values.
      cotangent: the cotangent of the output.
      log_sum: the log-sum of the logits of every query.
      product: the inner product of every query's output with its cotangent.
    """

    qkv: jax.Ref
    cotangent: jax.Ref
    log_sum: jax.Ref
    product: jax.Ref

    def queries(self, memory, token) -> Queries:
        """Reads a block of queries; past the last one their weights will be 0."""
        return Queries(
            token,
            memory.vectors(self.qkv, token, QUERY),
            memory.vectors(self.cotangent, token),
            memory.numbers(self.log_sum, token, jnp.inf),
            memory.numbers(self.product, token, 0),
        )

    def keys(self, memory, token) -> Keys:
        """Reads a block of keys and their values."""
        return Keys(token, *(memory.vectors(self.qkv, token, part) for part in (KEY, VALUE)))


def _weights_and_gradients(memory, queries, keys):
    """Returns the weights of a block of pairs, and the gradients of their logits."""
    logits = memory.logits(queries.vectors, keys.vectors, queries.token, keys.token)
    weights = jnp.exp2(logits - queries.log_sum[:, None])
    of_weights = _product(queries.cotangent, keys.values, axes=(1, 1))
    return weights, weights * (of_weights - queries.product[:, None])


def query_gradient_kernel(layout, residuals, *refs):
    """Computes the gradient of a block of queries."""
    *entries, output = refs
    memory, token = _program(layout, entries)
    queries = residuals.queries(memory, token)

    def add_keys(block, total):
        keys = residuals.keys(memory, layout.tokens_of(block))
        _, gradient = _weights_and_gradients(memory, queries, keys)
        return total + _product(gradient.astype(keys.vectors.dtype), keys.vectors)

    zero = jnp.zeros((layout.block, layout.channels), jnp.float32)
    total = lax.fori_loop(0, layout.blocks, add_keys, zero)
    memory.store_vectors(output, queries.token, total * layout.scale)


def key_gradient_kernel(layout, residuals, *refs):
    """Computes the gradients of a block of keys and of their values."""
    *entries, key_output, value_output = refs
    memory, token = _program(layout, entries)
    keys = residuals.keys(memory, token)

    def add_queries(block, totals):
        of_key, of_value = totals
        queries = residuals.queries(memory, layout.tokens_of(block))
        weights, gradient = _weights_and_gradients(memory, queries, keys)
        dtype = keys.vectors.dtype
        of_key += _product(gradient.astype(dtype), queries.vectors, axes=(0, 0))
        of_value += _product(weights.astype(dtype), queries.cotangent, axes=(0, 0))
        return of_key, of_value

    zero = jnp.zeros((layout.block, layout.channels), jnp.float32)
    of_key, of_value = lax.fori_loop(0, layout.blocks, add_queries, (zero, zero))
    memory.store_vectors(key_output, keys.token, of_key * layout.scale)
    memory.store_vectors(value_output, keys.token, of_value)


def bias_gradient_kernel(layout, residuals, *refs):
    """Sums the gradients of all pairs of grid rows with one distance, for one head."""
    entries, output = refs
    head, index = pl.program_id(0), pl.program_id(1)
    height, width = layout.grid
    distance = index - (height - 1)  # of the query's row from the key's
    column = jnp.arange(layout.row_block)

    def row(y):  # columns past its end are no tokens
        return jnp.where(column < width, 1 + y * width + column, layout.tokens)

    def add_rows(step, total):
        image, y = lax.div(step, rows), first + lax.rem(step, rows)
        memory = Memory(layout, image, head, entries)
        queries = residuals.queries(memory, row(y))
        keys = residuals.keys(memory, row(y - distance))
        return total + _weights_and_gradients(memory, queries, keys)[1]

    first, rows = jnp.maximum(0, distance), height - jnp.abs(distance)
    zero = jnp.zeros((layout.row_block,) * 2, jnp.float32)
    total = lax.fori_loop(0, layout.images * rows, add_rows, zero)
    triton.store(output.at[head, index, column[:, None], column[None]], total)
