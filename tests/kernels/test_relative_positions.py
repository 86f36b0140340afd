"""The table of relative positions, spread over all pairs of tokens."""

import jax
import numpy as np
import pytest

from pallas_kernels.relative_positions import bias_of_pairs, relative_position_index, table_rows


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (3, 2), (5, 7)])
def test_bias_of_every_pair_is_the_row_of_the_table_that_the_index_names(grid):
    table = np.arange(2.0 * table_rows(grid), dtype=np.float32).reshape(-1, 2)
    index = relative_position_index(grid)
    expected = table[index].transpose(2, 0, 1)
    np.testing.assert_array_equal(jax.jit(bias_of_pairs, static_argnums=1)(table, grid), expected)
    # And in the gradient every row gets what its pairs do.
    weights = np.random.default_rng(0).random(expected.shape, np.float32)
    _, gradient_of = jax.vjp(lambda table: bias_of_pairs(table, grid), table)
    sums = np.zeros_like(table)
    np.add.at(sums, index, weights.transpose(1, 2, 0))
    np.testing.assert_allclose(gradient_of(weights)[0], sums, rtol=1e-5)
