"""Position tables resized: relative ones when loaded, absolute ones in every forward pass."""

import jax
import numpy as np
import pytest
from scipy.interpolate import RectBivariateSpline

from jaxseg.errors import CheckpointError
from jaxseg.ops import position_tables, resize
from support.reference_files import Recording, recordings, relative_error

TOLERANCE = 1e-6
RELATIVE = recordings("vit_adapter/pretrained")
ABSOLUTE = [
    pytest.param(path, case, id=f"{path.stem}-{case}")
    for path in recordings("vit_adapter/modules")
    if path.stem.startswith("pos_embed_bicubic")
    for case in sorted({name.split("/")[0] for name in Recording(path).arrays})
]


def some_table(h, w):
    """Of two heads."""
    rows = (2 * h - 1) * (2 * w - 1) + 3
    return np.random.default_rng(0).standard_normal((rows, 2)).astype(np.float32)


@pytest.mark.reference
@pytest.mark.parametrize("path", RELATIVE, ids=lambda path: path.stem)
def test_relative_tables_are_resized_as_recorded(path):
    recorded = Recording(path)
    meta, table = recorded.json("meta"), recorded["inputs/table"]
    from_hw, hw = ((meta[size],) * 2 for size in ("src_patches", "dst_patches"))
    assert position_tables.square_window(len(table)) == from_hw
    actual = position_tables.resize_relative(table, from_hw, hw)
    assert actual.dtype == np.float32
    # A table that all blocks share becomes the table of each.
    blocks = recorded.group("outputs/table_block")
    assert blocks
    for expected in blocks.values():
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("hw", [(6, 6), (4, 7)])
def test_same_window_changes_nothing(hw):
    table = some_table(*hw)
    np.testing.assert_array_equal(position_tables.resize_relative(table, hw, hw), table)


@pytest.mark.parametrize("hw", [(9, 5), (6, 11), (4, 13), (8, 8)])
@pytest.mark.parametrize("from_hw", [(6, 6), (5, 8)])
def test_each_side_has_a_spline_over_its_own_offsets(from_hw, hw):
    table = some_table(*from_hw)
    actual = position_tables.resize_relative(table, from_hw, hw)
    assert len(actual) == len(some_table(*hw))
    np.testing.assert_array_equal(actual[-3:], table[-3:])
    sides = list(zip(from_hw, hw, strict=True))
    offsets = [
        np.arange(1 - n, n) if n == size else position_tables.source_offsets(n, size)
        for n, size in sides
    ]
    wanted = [
        np.clip(np.arange(1 - size, size), x[0], x[-1]) for x, size in zip(offsets, hw, strict=True)
    ]
    for head in range(2):
        grid = table[:-3, head].reshape([2 * n - 1 for n in from_hw])
        expected = RectBivariateSpline(*offsets, grid, kx=3, ky=3, s=0)(*wanted).ravel()
        np.testing.assert_allclose(actual[:-3, head], expected, rtol=0, atol=TOLERANCE)


def test_offsets_reach_the_edge_of_the_new_window_and_grow_outwards():
    offsets = position_tables.source_offsets(14, 40)
    np.testing.assert_allclose(offsets[[0, 13, -1]], [-39, 0, 39], rtol=1e-4)
    assert (np.diff(offsets[14:], 2) > 0).all()


def test_smaller_window_gets_the_middle_of_the_table():
    table = some_table(14, 14)
    grid = table[:-3].reshape(27, 27, 2)
    # The step of 1.01 instead of 1 moves the outermost offset, 7, to 7.2.
    assert position_tables.source_offsets(14, 8)[-7] == pytest.approx(7.2, abs=0.02)
    resized = position_tables.resize_relative(table, (14, 14), (8, 8))[:-3].reshape(15, 15, 2)
    np.testing.assert_allclose(resized[6:9, 6:9], grid[12:15, 12:15], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("rows", [0, 3, 81, 83, 3 + 64, 3 + 13 * 7])
def test_table_of_no_square_window_is_refused(rows):
    with pytest.raises(CheckpointError, match=rf"table of {rows} .*square window"):
        position_tables.square_window(rows)


@pytest.mark.reference
@pytest.mark.parametrize(("path", "case"), ABSOLUTE)
def test_absolute_tables_are_resized_as_recorded(path, case):
    recorded = Recording(path).group(f"{case}/")
    size, *hw = recorded["size"].tolist()
    grid = recorded["inputs/pos_embed"].reshape(1, size, size, -1)
    actual, backward = jax.vjp(lambda x: resize.resize_bicubic(x, hw), grid)
    # The recorded positions are rounded to float32, which moves values in the order of their size.
    expected = recorded["outputs/out"].reshape(actual.shape)
    assert relative_error(actual, expected) < TOLERANCE
    (gradient,) = backward(recorded["cotangents/out"].reshape(actual.shape))
    expected = recorded["grads/inputs/pos_embed"].reshape(grid.shape)
    assert relative_error(gradient, expected) < TOLERANCE


@pytest.mark.parametrize(("size", "out_size"), [(14, 32), (14, 7), (3, 20), (1, 4), (5, 5)])
def test_cubic_weights_sum_to_one(size, out_size):
    matrix = resize.cubic_matrix(size, out_size)
    assert matrix.shape == (out_size, size)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=TOLERANCE)
    if size == out_size:
        np.testing.assert_array_equal(matrix, np.eye(size))
