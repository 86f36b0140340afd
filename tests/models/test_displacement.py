"""How far the offsets of deformable layers range, as training logs it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxseg.models import displacement
from jaxseg.models.segmentation_model import apply_model, build_model, variable_shapes
from support.tiny import tiny_config


class Layer(nn.Module):
    @nn.compact
    def __call__(self, offset):
        displacement.sow_range(self, offset, axes=(2, 3))
        return offset


class Model(nn.Module):
    @nn.compact
    def __call__(self, offset):
        return Layer(name="second")(3 * Layer(name="first")(offset))


def test_the_range_is_that_of_a_row_averaged_over_rows_and_layers():
    offset = np.zeros((1, 2, 4, 3), np.float32)  # [image, row, column, point]
    offset[0, 0, 1, 2], offset[0, 0, 3, 0] = -1, 4  # 5 pixels in this row, none in the other
    _, kept = Model().apply({}, offset, mutable=[displacement.COLLECTION])
    assert displacement.mean_range(kept) == (2.5 + 7.5) / 2


def test_initialization_and_models_without_such_layers_keep_none():
    assert not Model().init(jax.random.key(0), jnp.zeros((1, 1, 1, 1)))
    assert displacement.mean_range({"batch_stats": {}}) is None


def test_a_model_in_training_gives_it():
    model = build_model(tiny_config().model)
    variables = variable_shapes(model)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)

    def displacement_of(variables, images, train):
        rng = jax.random.key(0)
        output, _ = apply_model(model, variables, images, train=train, dropout_rng=rng)
        return output.displacement

    assert jax.eval_shape(lambda v, x: displacement_of(v, x, True), variables, images).shape == ()
    assert jax.eval_shape(lambda v, x: displacement_of(v, x, False), variables, images) is None
