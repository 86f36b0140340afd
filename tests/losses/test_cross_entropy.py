"""The cross-entropy in bands of rows equals that of all rows at once, which is written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.aot.collectives import parse_collectives
from jaxseg.distributed.sharding import BATCH_SPEC, make_mesh
from jaxseg.losses import cross_entropy as losses
from jaxseg.losses.cross_entropy import BAND, IGNORE, cross_entropy
from jaxseg.ops.resize import resize_bilinear


def at_once(logits, labels):
    logits = resize_bilinear(logits, labels.shape[1:])
    one_hot = jax.nn.one_hot(labels, logits.shape[-1])
    per_pixel = -jnp.sum(jax.nn.log_softmax(logits) * one_hot, axis=-1)
    return jnp.mean(jnp.where(labels == IGNORE, 0.0, per_pixel))


@pytest.mark.parametrize(
    ("hw", "out_hw"),
    [
        ((16, 24), (64, 96)),  # whole bands
        ((13, 9), (50, 37)),  # the last band has fewer rows
        ((1, 1), (BAND + 1, 5)),  # all bands from one row
        ((70, 6), (40, 6)),  # smaller labels
        ((8, 8), (8, 8)),
    ],
)
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_bands_give_the_loss_and_the_gradient(hw, out_hw, platform, monkeypatch):
    monkeypatch.setattr(losses, "platform", lambda: platform)
    random = np.random.default_rng(0)
    logits = jnp.asarray(random.normal(size=(2, *hw, 7)) * 5, jnp.float32)
    labels = random.integers(0, 9, (2, *out_hw)).astype(np.int32)
    labels[labels >= 7] = IGNORE
    loss, gradient = jax.value_and_grad(lambda x: 3 * cross_entropy(x, labels))(logits)
    expected, wanted = jax.value_and_grad(lambda x: 3 * at_once(x, labels))(logits)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(loss, 3 * cross_entropy(logits, labels), rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-8)


def test_half_precision_and_small_labels_are_taken():
    random = np.random.default_rng(0)
    logits = jnp.asarray(random.normal(size=(2, 8, 8, 7)), jnp.bfloat16)
    labels = random.integers(0, 7, (2, 64, 64)).astype(np.uint8)
    labels[0, 0] = IGNORE
    loss, gradient = jax.value_and_grad(cross_entropy)(logits, labels)
    wide = logits.astype(jnp.float32)
    expected, wanted = jax.value_and_grad(at_once)(wide, labels.astype(np.int32))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(jnp.float32), wanted, rtol=2**-8, atol=1e-8)


def test_no_array_has_the_size_of_the_resized_logits():
    logits, labels = jnp.zeros((2, 64, 64, 50)), jnp.zeros((2, 256, 256), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(cross_entropy)).lower(logits, labels).compile()
    resized = 4 * 2 * 256 * 256 * 50
    assert compiled.memory_analysis().temp_size_in_bytes < resized


def test_one_sum_over_the_devices_serves_all_bands():
    mesh = make_mesh({"data": 8, "fsdp": 1})
    split = jax.NamedSharding(mesh, BATCH_SPEC)
    logits = jax.ShapeDtypeStruct((8, 64, 64, 5), jnp.float32, sharding=split)
    labels = jax.ShapeDtypeStruct((8, 256, 256), jnp.int32, sharding=split)
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.value_and_grad(cross_entropy)).lower(logits, labels).compile()
    (found,) = parse_collectives(compiled.as_text(), 8)
    assert (found.kind, found.shapes, found.times) == ("all-reduce", (("f32", ()),), 1)
