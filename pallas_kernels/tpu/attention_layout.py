"""Where queries, keys and biases of self-attention lie in the memory of a TPU.

Queries are divided into blocks, and keys into *strips* of 128, one key for each lane. With a bias
of relative positions, the queries of a block and the keys of a strip are whole rows of the grid of
patches. The class token as a key is in a free lane of the first strip, or else in a strip of its
own, for which there are blocks of zero bias.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jax.experimental import pallas as pl

SUBLANES, LANES = 8, 128
QUERIES = 512  # of a block, at most
GROUPS = range(1, 5)  # numbers of strips that may be computed at once
TOKEN_ROWS = 2 * SUBLANES  # a whole register of bfloat16, for the class token as a query

Piece = tuple[int, int, int]  # first row of the source, first row of the target, and rows


class Layout(NamedTuple):
    """Says where the queries, keys and biases of a call lie.

    Attributes:
      channels: the number of channels of a head.
      queries: the number of rows of a block of queries.
      blocks: the number of blocks.
      group: the number of strips that are computed at once.
      groups: the number of groups.
      query_pieces: where the queries of patches lie in the blocks.
      key_pieces: where the keys of patches lie in the strips.
      query_rows: the rows of the grid that a block holds, or 0 without a bias.
      key_rows: the rows of the grid that a strip holds, or 0 without a bias.
      token_place: the place of the class token among the keys, or None without a bias.
      width: the number of columns of the grid, or 0 without a bias.
    """

    channels: int
    queries: int
    blocks: int
    group: int
    groups: int
    query_pieces: tuple[Piece, ...]
    key_pieces: tuple[Piece, ...]
    query_rows: int = 0
    key_rows: int = 0
    token_place: int | None = None
    width: int = 0

    @property
    def has_bias(self) -> bool:
        return self.token_place is not None

    @property
    def keys(self) -> int:
        """The number of places for keys."""
        return self.group * self.groups * LANES

    @property
    def last_key_row(self) -> int:
        """The first row of the grid that the last strip holds."""
        return (self.group * self.groups - 1) * self.key_rows

    @property
    def token_strip(self) -> int | None:
        """The strip that the class token has for itself, if there is one."""
        if self.token_place is None or self.token_place % LANES:
            return None
        return self.token_place // LANES

    @property
    def blank_rows(self) -> int:
        """The number of blocks of bias that are zero, which come first."""
        return 0 if self.token_strip is None else self.query_rows

    @property
    def bias_shape(self) -> tuple[int, int, int]:
        """The shape of the blocks of bias of one head, each for a row of queries and a strip."""
        rows = self.blank_rows + self.blocks * self.query_rows + self.last_key_row
        return rows, _round_up(self.width, SUBLANES), LANES

    @property
    def table_shape(self) -> tuple[int, int, int]:
        """The shape of the shifted tables of one head (see `attention_bias`)."""
        lanes = _round_up(2 * self.width - 1, LANES)
        return self.key_rows, self.bias_shape[0], lanes

    @property
    def query_gaps(self) -> list[tuple[int, int]]:
        """The rows of the blocks that hold no query, as (first row, rows)."""
        return _gaps(self.query_pieces, self.queries * self.blocks)

    @property
    def key_gaps(self) -> list[tuple[int, int]]:
        """The places that hold no key of a patch, as (first place, places)."""
        return _gaps(self.key_pieces, self.keys)


def _gaps(pieces, total):
    ends = [0, *(to + rows for _, to, rows in pieces)]
    starts = [*(to for _, to, _ in pieces), total]
    return [(end, start - end) for end, start in zip(ends, starts, strict=True) if start > end]


def _divide(strips: int) -> tuple[int, int]:
    """Returns how many strips a group has, and how many groups there are.

    Some strips may be empty. Every group costs about half as much as a strip in addition.
    """
    group = min(GROUPS, key=lambda group: pl.cdiv(strips, group) * (group + 0.5))
    return group, pl.cdiv(strips, group)


def _round_up(number: int, multiple: int) -> int:
    return pl.cdiv(number, multiple) * multiple


def _pieces(first: int, total: int, rows: int, pitch: int) -> tuple[Piece, ...]:
    """Returns the pieces of `total` rows from `first` on, of `rows` each, `pitch` apart."""
    if rows == pitch:
        return ((first, 0, total),)
    return tuple(
        (first + start, start // rows * pitch, min(rows, total - start))
        for start in range(0, total, rows)
    )


def of_tokens(tokens: int, channels: int) -> Layout:
    """Returns the layout of self-attention without a bias."""
    blocks = pl.cdiv(tokens, QUERIES)
    queries = _round_up(pl.cdiv(tokens, blocks), TOKEN_ROWS)
    group, groups = _divide(pl.cdiv(tokens, LANES))
    pieces = ((0, 0, tokens),)
    return Layout(channels, queries, blocks, group, groups, pieces, pieces)


def of_grid(grid: Sequence[int], channels: int) -> Layout:
    """Returns the layout of a class token and a grid of (height, width) patches, with a bias.

    A row of the grid must not be longer than a strip.
    """
    height, width = grid
    columns = _round_up(width, SUBLANES)
    blocks = pl.cdiv(height, max(1, QUERIES // columns))
    query_rows = pl.cdiv(height, blocks)
    query_rows += query_rows * columns % TOKEN_ROWS // SUBLANES  # whole registers of bfloat16
    key_rows = LANES // width
    used, strips = key_rows * width, pl.cdiv(height, key_rows)
    group, groups = _divide(strips + (used == LANES))
    return Layout(
        channels,
        query_rows * columns,
        blocks,
        group,
        groups,
        _pieces(1, height * width, width, columns),
        _pieces(1, height * width, used, LANES),
        query_rows,
        key_rows,
        strips * LANES if used == LANES else used,
        width,
    )


def held_bytes(layout: Layout, tokens: int, itemsize: int) -> int:
    """Returns the memory that the backward kernel holds for the heads that it computes at once.

    Args:
      layout: where everything lies.
      tokens: the number of tokens.
      itemsize: the bytes of a number of the model's type.
    """
    heads = LANES // layout.channels
    row = LANES * itemsize
    # Five inputs and three outputs in two buffers each; four copies in blocks.
    held = 16 * tokens * row + 4 * layout.blocks * layout.queries * row
    held += 2 * heads * layout.keys * (row + 4 * LANES)  # keys and values, and their gradients
    if layout.has_bias:  # and its gradient; the tables and theirs in two buffers each
        held += 8 * heads * (math.prod(layout.bias_shape) + 2 * math.prod(layout.table_shape))
    return held
