"""BEiT without a companion: what its four features are made of. (Its blocks have recordings.)"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_files import relative_error

from converters import rules
from jaxseg import paths
from jaxseg.models import beit

TINY = beit.BEiT(embed_dim=8, depth=5, num_heads=2, out_indices=(0, 2, 3, 4), window=(4, 4))
IMAGES = np.random.default_rng(0).standard_normal((2, 64, 96, 3)).astype(np.float32)


def is_block(module, _):
    return (module.name or "").startswith("blocks_")


@functools.cache
def variables():
    """Fresh ones, with layer scales that let the blocks do something."""
    model = TINY.clone(layer_scale=0.5)
    return jax.jit(model.init)(jax.random.key(0), IMAGES)


def torch_tail(torch):
    """Transposed convolutions and batch norm as PyTorch has them, with the model's weights."""
    nn = torch.nn

    def enlarge():
        return nn.ConvTranspose2d(8, 8, 2, 2)

    tail = nn.Module()
    tail.fpn1 = nn.Sequential(enlarge(), nn.BatchNorm2d(8), nn.GELU(), enlarge())
    tail.fpn2 = nn.Sequential(enlarge())
    state = {
        rules.to_name(path): torch.tensor(rules.to_channels_first(np.asarray(leaf), path))
        for path, leaf in paths.by_path(variables()).items()
        if "/fpn" in path
    }
    counters = {k: v for k, v in tail.state_dict().items() if k.endswith(rules.COUNTER)}
    tail.load_state_dict(state | counters)
    return tail


@pytest.mark.parametrize("train", [False, True])
def test_features_are_those_of_pytorch_modules_after_the_blocks(train):
    torch = pytest.importorskip("torch")
    collections = ["batch_stats", "intermediates"]
    apply = functools.partial(TINY.apply, capture_intermediates=is_block, mutable=collections)
    features, updated = jax.jit(apply, static_argnums=2)(variables(), IMAGES, train)
    blocks = updated["intermediates"]
    maps = [
        torch.tensor(np.asarray(blocks[f"blocks_{i}"]["__call__"][0][:, 1:]))
        .reshape(2, 4, 6, 8)
        .permute(0, 3, 1, 2)
        for i in TINY.out_indices
    ]
    tail = torch_tail(torch).train(train)
    expected = [
        tail.fpn1(maps[0]),
        tail.fpn2(maps[1]),
        maps[2],
        torch.nn.functional.max_pool2d(maps[3], 2),
    ]
    for ours, theirs in zip(features, expected, strict=True):
        assert relative_error(jnp.moveaxis(ours, -1, 1), theirs.detach().numpy()) < 1e-5
    for path, ours in paths.by_path({"batch_stats": updated["batch_stats"]}).items():
        assert relative_error(ours, tail.state_dict()[rules.to_name(path)].numpy()) < 1e-5


def test_features_have_the_strides_of_a_pyramid_at_any_size():
    for hw in ((64, 64), (32, 160)):
        images = jax.ShapeDtypeStruct((1, *hw, 3), jnp.float32)
        features = jax.eval_shape(TINY.apply, variables(), images)
        sizes = [(1, hw[0] // stride, hw[1] // stride, 8) for stride in (4, 8, 16, 32)]
        assert [x.shape for x in features] == sizes


def test_rematerialised_blocks_have_the_same_gradients():
    def gradient(model):
        def loss(params):
            features = model.apply(variables() | {"params": params}, IMAGES)
            return sum(jnp.mean(x**2) for x in features)

        return jax.jit(jax.grad(loss))(variables()["params"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        gradient(TINY),
        gradient(TINY.clone(remat=True)),
    )


def test_sides_that_are_no_multiples_of_the_coarsest_stride_are_refused():
    images = jax.ShapeDtypeStruct((1, 64, 80, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"BEiT: an image of 64 x 80; .* multiples of 32"):
        jax.eval_shape(TINY.apply, variables(), images)


@pytest.mark.parametrize("indices", [(0, 1, 2), (0, 1, 2, 5), (1, 0, 2, 3)])
def test_features_of_blocks_that_do_not_make_a_pyramid_are_refused(indices):
    model = TINY.clone(out_indices=indices)
    with pytest.raises(ValueError, match="four ascending numbers of blocks below depth=5"):
        jax.eval_shape(model.init, jax.random.key(0), IMAGES)
