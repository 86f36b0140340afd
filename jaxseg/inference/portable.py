"""Segments uint8 images of one size in a single traced function, for export.

The function holds all that `Predictor` does around the model: resizing, normalization, views and
windows, and the way back to the size of the image. It calls no kernel, and no code of the host.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from jaxseg.data import transforms, views
from jaxseg.inference.sliding_window import (
    SlidingWindow,
    parse_sliding_window,
    plan_axis,
    slide_over,
)
from jaxseg.models.segmentation_model import SegmentationModel, Variables, apply_model
from jaxseg.ops.image_resize import normalize_image, resize_image, resize_image_smoothly
from jaxseg.ops.layout import free_layouts

Hw = tuple[int, int]
Segment = Callable[[UInt8[Array, "b h w 3"]], tuple[UInt8[Array, "b h w"], Float[Array, "b h w k"]]]


def portable_function(
    model: SegmentationModel, variables: Variables, config: ConfigDict, hw: Hw, num_classes: int
) -> Segment:
    """Returns a function from RGB images to the class and the class probabilities of every pixel.

    Args:
      model: the model, with the kernels "xla".
      variables: its variables. They become constants of whatever traces the function.
      config: the resolved config, whose `eval` part describes the protocol.
      hw: height and width of the images.
      num_classes: number of leading outputs of the head to use.

    Raises:
      ConfigError: if `config.eval` describes impossible views or windows.
    """
    slide, planned = parse_sliding_window(config.eval), views.plan_views(hw, config)

    def segment(images):
        with free_layouts():
            total = sum(
                view.weight
                * _probabilities(model, variables, config, images, view, slide, num_classes)
                for view in planned
            )
        mean = total / np.float32(sum(view.weight for view in planned))
        return jnp.argmax(mean, axis=-1).astype(jnp.uint8), mean

    return segment


def _probabilities(model, variables, config, images, view, slide, num_classes):
    """Returns the class probabilities of one view, at the size of the images."""
    b, *out_hw, _ = images.shape
    pixels = _network_input(images, view, config)
    slide = slide_over(view.padded_hw, slide, squares=view.smooth)
    crop_hw, stride_hw = slide or SlidingWindow(view.padded_hw, view.padded_hw)
    crop_hw = tuple(map(min, crop_hw, view.padded_hw))
    shape = jax.eval_shape(
        lambda x: apply_model(model, variables, x)[0].logits,
        jax.ShapeDtypeStruct((1, *crop_hw, 3), jnp.float32),
    ).shape
    unpadded_hw = view.hw if views.evaluation_rule(config).cut_padding else view.padded_hw
    rows, columns = (
        plan_axis(*sides)
        for sides in zip(
            view.padded_hw, unpadded_hw, out_hw, crop_hw, stride_hw, shape[1:3], strict=True
        )
    )
    windows = [
        pixels[:, top : top + crop_hw[0], left : left + crop_hw[1]]
        for top in rows.starts.tolist()
        for left in columns.starts.tolist()
    ]
    logits = apply_model(model, variables, jnp.concatenate(windows))[0].logits
    logits = logits[..., :num_classes].astype(jnp.float32)
    # [ny, nx, b, p, q, k] -> [b, ny * p, nx * q, k]
    logits = logits.reshape(len(rows.starts), len(columns.starts), b, *logits.shape[1:])
    logits = logits.transpose(2, 0, 3, 1, 4, 5)
    _, ny, p, nx, q, _ = logits.shape
    logits = logits.reshape(b, ny * p, nx * q, num_classes)
    to_columns = columns.mirrored().matrix if view.mirrored else columns.matrix
    exact = {"precision": lax.Precision.HIGHEST}
    tall = jnp.einsum("yp,bpqk->byqk", _dense(rows.matrix), logits, **exact)
    return jax.nn.softmax(jnp.einsum("xq,byqk->byxk", _dense(to_columns), tall, **exact), axis=-1)


def _network_input(images, view, config):
    """Returns a view as the network takes it: resized, mirrored, normalized and padded."""
    for hw in view.sizes:
        images = (resize_image_smoothly if view.smooth else resize_image)(images, hw)
    if view.mirrored:
        images = images[:, :, ::-1]
    margins = [(0, padded - side) for padded, side in zip(view.padded_hw, view.hw, strict=True)]
    padding = ((0, 0), *margins, (0, 0))
    if views.evaluation_rule(config).pad == "before_normalize":
        images, padding = jnp.pad(images, padding), ((0, 0),) * 4
    levels = transforms.normalized_levels(config.data.mean, config.data.std)
    return jnp.pad(normalize_image(images, levels), padding)


def _dense(matrix):
    return matrix.toarray().astype(np.float32)
