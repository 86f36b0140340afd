"""Self-attention with and without a bias of relative positions: what runs here, and where what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

import pallas_kernels
from jaxseg.distributed.sharding import BATCH_SPEC, make_mesh, map_over_batch
from pallas_kernels import dispatch, reference, xla_attention
from pallas_kernels.gpu import attention as gpu
from pallas_kernels.relative_positions import table_rows
from pallas_kernels.tpu import attention as tpu
from pallas_kernels.tpu import attention_layout
from support.operators import GRADIENTS, INTERPRET, VALUES, check, over, with_gradients
from support.reference_files import relative_error

EVERY = over(["xla", "tpu", "gpu"])
HEADS, CHANNELS = 2, 64  # those of the published models, as many as a kernel computes at once
GRID = (3, 40)  # for what does not depend on it


def arguments(tokens, images=2, seed=0, heads=HEADS, channels=CHANNELS):
    """Packed queries, keys and values, and a cotangent."""
    rng = np.random.default_rng(seed)
    width = heads * channels
    return [
        jnp.asarray(rng.standard_normal((images, tokens, size)), jnp.float32)
        for size in (3 * width, width)
    ]


def grid_arguments(grid, images=2, seed=0, heads=HEADS, channels=CHANNELS):
    """The same for a class token and the patches of a grid, and before the cotangent a table."""
    qkv, cotangent = arguments(1 + grid[0] * grid[1], images, seed, heads, channels)
    table = np.random.default_rng(seed + 1).standard_normal((table_rows(grid), heads))
    return [qkv, jnp.asarray(table, jnp.float32), cotangent]


@functools.cache
def operator(implementation, grid=None, heads=HEADS):
    if implementation == "gpu":
        return functools.partial(
            gpu.self_attention, num_heads=heads, grid=grid, interpret=INTERPRET
        )
    return functools.partial(
        pallas_kernels.self_attention, num_heads=heads, grid=grid, implementation=implementation
    )


@functools.cache
def definition(grid=None, heads=HEADS):
    return functools.partial(reference.self_attention, num_heads=heads, grid=grid)


def check_bias(results, expected):
    """Of an output and the gradients of qkv and table."""
    check(results, expected)
    # The entries of the class token are sums of their own.
    assert relative_error(results[2][-3:], expected[2][-3:]) < GRADIENTS


# The kernels' strips hold 5, 4, 3, 4, 2 and 1 rows of these grids. Where they are full, in the last
# three, the class token has a strip of its own.
@EVERY
@pytest.mark.parametrize("grid", [(7, 25), (5, 30), GRID, (7, 32), (3, 64), (2, 128)], ids=str)
def test_bias_of_relative_positions_is_that_of_the_definition(implementation, grid):
    inputs = grid_arguments(grid, images=3)
    results = with_gradients(operator(implementation, grid))(*inputs)
    check_bias(results, with_gradients(definition(grid))(*inputs))


@EVERY
@pytest.mark.parametrize("tokens", [2, 7, 196, 1030])
def test_any_number_of_tokens_equals_the_definition(implementation, tokens):
    inputs = arguments(tokens)
    results = with_gradients(operator(implementation))(*inputs)
    check(results, with_gradients(definition())(*inputs))


def test_several_blocks_of_queries_and_groups_of_keys_equal_the_definition():
    """With four heads at once, and as many again."""
    grid, heads, channels = (24, 40), 8, 32
    layout = attention_layout.of_grid(grid, channels)
    assert layout.blocks == 2
    assert layout.groups > 1
    inputs = grid_arguments(grid, images=2, heads=heads, channels=channels)
    results = with_gradients(operator("tpu", grid, heads))(*inputs)
    check_bias(results, with_gradients(definition(grid, heads))(*inputs))


@EVERY
def test_heads_that_do_not_fill_a_register_equal_the_definition(implementation):
    """Three heads, as ViT-T has, of which the last one has no neighbor."""
    inputs = grid_arguments(GRID, heads=3)
    results = with_gradients(operator(implementation, GRID, 3))(*inputs)
    check_bias(results, with_gradients(definition(GRID, 3))(*inputs))


@EVERY
def test_equal_biases_of_all_pairs_change_nothing(implementation):
    grid = GRID
    qkv, table, cotangent = grid_arguments(grid)
    equal = jnp.full_like(table, 3.0)
    biased = with_gradients(operator(implementation, grid))(qkv, equal, cotangent)
    check(biased[:2], with_gradients(operator(implementation))(qkv, cotangent))


@EVERY
def test_large_logits_give_the_value_of_the_nearest_key(implementation):
    qkv, cotangent = arguments(300)
    query, key, value = jnp.split(qkv, 3, axis=-1)
    qkv = jnp.concatenate([1e3 * query, 1e3 * key, value], axis=-1)
    results = with_gradients(operator(implementation))(qkv, cotangent)
    assert all(bool(jnp.isfinite(x).all()) for x in results)
    query, key, value = (x.reshape(2, 300, HEADS, CHANNELS) for x in (query, key, value))
    nearest = jnp.argmax(jnp.einsum("bngd,bmgd->bngm", query, key), axis=-1)
    expected = jnp.take_along_axis(value, nearest[..., None], axis=1)
    assert relative_error(results[0], expected.reshape(cotangent.shape)) < VALUES


@EVERY
def test_bfloat16_is_rounded_where_it_is_stored(implementation):
    """Weights, gradients of logits, and results: each changes a result by up to 2⁻⁸ of its size."""
    grid = (5, 30)
    qkv, table, cotangent = grid_arguments(grid)
    half = [x.astype(jnp.bfloat16) for x in (qkv, cotangent)]
    results = with_gradients(operator(implementation, grid))(half[0], table, half[1])
    exact = [x.astype(jnp.float32) for x in half]
    expected = with_gradients(definition(grid))(exact[0], table, exact[1])
    assert [x.dtype for x in results] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for result, array in zip(results, expected, strict=True):
        assert relative_error(result.astype(jnp.float32), array) < 2**-6


@EVERY
def test_vmap_equals_a_loop(implementation):
    grid = GRID
    cases = [grid_arguments(grid, seed=seed) for seed in range(2)]
    run = with_gradients(operator(implementation, grid))
    stacked = jax.vmap(run)(*map(jnp.stack, zip(*cases, strict=True)))
    for i, case in enumerate(cases):
        check([result[i] for result in stacked], run(*case))


@EVERY
def test_recomputed_in_the_backward_pass_it_has_the_same_gradients(implementation):
    grid = GRID
    inputs = grid_arguments(grid)
    run = operator(implementation, grid)
    again = with_gradients(jax.checkpoint(run))(*inputs)
    check(again, with_gradients(run)(*inputs))


@EVERY
def test_eight_devices_sum_the_gradient_of_the_table(implementation):
    grid = GRID
    mesh = make_mesh({"data": 2, "fsdp": 4})
    qkv, table, cotangent = grid_arguments(grid, images=8)
    run = operator(implementation, grid)
    expected = with_gradients(run)(qkv, table, cotangent)
    qkv, cotangent = (jax.device_put(x, NamedSharding(mesh, BATCH_SPEC)) for x in (qkv, cotangent))
    with jax.set_mesh(mesh):
        mapped = map_over_batch(run, num_replicated=1)
        results = with_gradients(mapped)(qkv, table, cotangent)
    check(results, expected)
    assert len(results[0].sharding.device_set) == 8


def test_cudnn_takes_calls_without_a_bias_where_it_is(monkeypatch):
    """XLA takes the place of cuDNN, which needs a GPU."""
    called = []

    def attend(*arrays):
        called.append(arrays)
        return xla_attention.attend(*arrays)

    monkeypatch.setattr(gpu, "cudnn_supports", lambda dtype: True)
    monkeypatch.setattr(gpu, "attend", attend)
    qkv, _ = arguments(13)
    output = gpu.self_attention(qkv, num_heads=HEADS)
    assert relative_error(output, definition()(qkv)) < VALUES
    assert len(called) == 1
    assert gpu.fits(24, qkv.dtype, grid=None)


@pytest.fixture
def on_tpu(monkeypatch):
    """As if this machine had a TPU; what was traced without it is forgotten."""
    jax.clear_caches()
    monkeypatch.setattr(dispatch, "platform", lambda: "tpu")
    yield
    jax.clear_caches()


def lowered(inputs, platform, grid=None, heads=HEADS):
    """The program of attention and its gradients for a platform, as text."""
    run = with_gradients.__wrapped__(operator.__wrapped__(None, grid, heads))
    return run.trace(*inputs).lower(lowering_platforms=(platform,)).as_text()


def test_a_tpu_has_kernels(on_tpu):
    grid = (20, 40)
    assert lowered(grid_arguments(grid), "tpu", grid).count("tpu_custom_call") == 2
    assert lowered(arguments(800), "tpu").count("tpu_custom_call") == 2
    # The same machine's CPU can run it, too.
    assert "tpu_custom_call" not in lowered(grid_arguments(grid), "cpu", grid)


def test_what_the_kernels_of_a_gpu_do_not_take_goes_without():
    float32 = jnp.dtype("float32")
    assert gpu.fits(64, float32, grid=(56, 56))
    assert gpu.fits(64, float32, grid=None)
    assert not gpu.fits(24, float32, grid=None)
    assert not gpu.fits(64, float32, grid=(2, 129))


def test_what_the_kernels_of_a_tpu_do_not_take_goes_without(on_tpu):
    def fits(tokens=500, channels=64, grid=None):
        return tpu.fits(tokens, channels, jnp.dtype("bfloat16"), grid)

    assert fits()
    assert fits(1 + 56 * 56, grid=(56, 56))
    assert not fits(channels=24)
    assert not fits(channels=128)
    assert not fits(2**17)
    assert not fits(1 + 2 * 129, grid=(2, 129))  # a row of patches is longer than a strip
    long = (2, 129)
    assert "tpu_custom_call" not in lowered(grid_arguments(long), "tpu", long)
    assert "tpu_custom_call" not in lowered(arguments(9, channels=24), "tpu")


def test_a_named_implementation_that_does_not_take_a_call_gives_way():
    inputs = arguments(9, channels=24)
    results = with_gradients(operator("tpu"))(*inputs)
    check(results, with_gradients(operator("xla"))(*inputs))


def test_arrays_that_do_not_belong_together_are_refused():
    qkv, table, _ = grid_arguments((2, 3))
    with pytest.raises(ValueError, match=r"384 columns of qkv \(2, 7, 384\) are not .* of 5 heads"):
        pallas_kernels.self_attention(qkv, num_heads=5)
    with pytest.raises(ValueError, match=r"of \(2, 2\) patches has 5 tokens and a table of \(12"):
        pallas_kernels.self_attention(qkv, table, num_heads=HEADS, grid=(2, 2))
    with pytest.raises(ValueError, match="no implementation 'cuda'; there are reference, xla"):
        pallas_kernels.self_attention(qkv, num_heads=HEADS, implementation="cuda")
