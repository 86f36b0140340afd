"""Images of several sizes, padded to one shape, get the logits that each gets alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.segmentation_model import apply_model, build_model, variable_shapes
from jaxseg.ops import padding, resize
from jaxseg.ops.convolution import adaptive_avg_pool
from jaxseg.selftest import models as selftest

BACKBONES = {
    "pre-norm": {},
    "post-norm": {"post_norm": True, "layer_scale": 1.0},
    "InternImage-H": {
        "res_post_norm": True,
        "dw_kernel_size": 5,
        "center_feature_scale": True,
        "level2_post_norm_after": (0,),
    },
}
HEADS = {
    "upernet": {"kind": "upernet", "num_classes": 5, "channels": 16},
    "segformer": {"kind": "segformer", "num_classes": 5, "channels": 16},
}
PADDED_HW = (256, 384)
SIZES = [(255, 290), (130, 383)]  # odd and even along either axis


def model_of(backbone, head):
    backbone = {
        "kind": "internimage",
        "channels": 16,
        "depths": (1, 1, 1, 1),
        "groups": (1, 2, 4, 8),
        **BACKBONES[backbone],
    }
    parts = {"backbone": backbone, "decode_head": HEADS[head], "auxiliary_head": None}
    return build_model({"dtype": "float32", "kernels": "xla", **parts})


def random_variables(model, rng):
    """Parameters of a size at which samples are taken several pixels away."""

    def draw(path, leaf):
        values = rng.normal(0, 0.3, leaf.shape).astype(np.float32)
        name = path[-1].key
        return np.abs(values) + 0.5 if name in ("scale", "var") else values

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(model))


@pytest.mark.parametrize(
    ("backbone", "head"),
    [("pre-norm", "upernet"), ("post-norm", "segformer"), ("InternImage-H", "upernet")],
)
def test_padding_changes_no_logits(backbone, head):
    rng = np.random.default_rng(0)
    model = model_of(backbone, head)
    variables = random_variables(model, rng)
    assert model.takes_padding
    run = jax.jit(lambda *given: apply_model(model, *given[:2], image_sizes=given[2])[0].logits)
    batch = np.zeros((len(SIZES), *PADDED_HW, 3), np.float32)
    images = [rng.normal(size=(*hw, 3)).astype(np.float32) for hw in SIZES]
    for image, padded in zip(images, batch, strict=True):
        padded[: image.shape[0], : image.shape[1]] = image
    found = np.asarray(run(variables, batch, np.array(SIZES, np.int32)))
    for image, logits in zip(images, found, strict=True):
        (alone,) = np.asarray(run(variables, image[None], None))
        logits = logits[: alone.shape[0], : alone.shape[1]]
        assert np.abs(logits - alone).max() < 1e-5 * np.abs(alone).max()  # float32 rounds at 1e-7


def test_other_models_do_not_take_padding():
    attention = {
        "dtype": "float32",
        "backbone": selftest.MODELS["ViT-Adapter, SegFormerHead"][0],
        "decode_head": HEADS["upernet"],
        "auxiliary_head": None,
    }
    assert not build_model(attention).takes_padding


@pytest.mark.parametrize("out_hw", [(1, 1), (7, 13), (64, 43), (85, 1023), (130, 2047)])
def test_resizing_within_padding_is_resizing(out_hw):
    hw, padded_hw, padded_out = (43, 512), (64, 512), (130, 2048)
    x = np.random.default_rng(1).normal(size=(1, *padded_hw, 2)).astype(np.float32)
    sizes, out_sizes = (jnp.array([side], jnp.int32) for side in (hw, out_hw))
    matrices = padding.interpolation_matrices(padded_hw, padded_out, sizes, out_sizes)
    for matrix, size, out in zip(matrices, hw, out_hw, strict=True):
        expected = np.zeros(matrix.shape[1:], np.float32)
        expected[:out, :size] = resize.interpolation_matrix(size, out)
        np.testing.assert_array_equal(matrix[0], expected)
    resized = resize.resize_bilinear(x, padded_out, sizes, out_sizes)
    alone = resize.resize_bilinear(x[:, : hw[0], : hw[1]], out_hw)
    np.testing.assert_allclose(resized[:, : out_hw[0], : out_hw[1]], alone, atol=1e-6)
    assert not np.any(resized[:, out_hw[0] :])
    assert not np.any(resized[:, :, out_hw[1] :])


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_pooling_within_padding_is_pooling(bins):
    x = np.random.default_rng(2).normal(size=(2, 16, 32, 3)).astype(np.float32)
    sizes = np.array([[5, 31], [16, 2]], np.int32)
    pooled = adaptive_avg_pool(x, bins, jnp.array(sizes))
    for image, (h, w), found in zip(x, sizes, pooled, strict=True):
        alone = adaptive_avg_pool(image[None, :h, :w], bins)[0]
        np.testing.assert_allclose(found, alone, atol=1e-6)
