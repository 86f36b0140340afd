"""From images to class scores, by the rules of the reference; knows nothing of datasets."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxseg.errors import ConfigError
from jaxseg.models import segmentor
from jaxseg.resize import resize_bilinear

Forward = Callable[[Float[Array, "b h w 3"]], Float[Array, "b p q k"]]


class Slide(NamedTuple):
    """Windows of `crop_hw` every `stride_hw`, in pixels of the network's input."""

    crop_hw: tuple[int, int]
    stride_hw: tuple[int, int]


Protocol = Slide | None  # None: the image in one piece


def protocol_of(settings: Mapping[str, Any]) -> Protocol:
    """How `config.eval` wants images to go through the network.

    Raises:
      ConfigError: for another mode than these two, and for windows that cannot cover an image.
    """
    mode = settings["mode"]
    if mode not in ("whole", "slide"):
        raise ConfigError(f"config.eval.mode={mode}: 'whole' or 'slide'")
    if mode == "whole":
        return None
    slide = Slide(*(tuple(settings[key]) for key in Slide._fields))
    for key, sides in slide._asdict().items():
        if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
            raise ConfigError(f"config.eval.{key}={sides}: height and width, whole and above 0")
    if any(stride > crop for crop, stride in zip(*slide, strict=True)):
        raise ConfigError(
            f"config.eval.stride_hw={slide.stride_hw} leaves gaps between windows of"
            f" config.eval.crop_hw={slide.crop_hw}; neither side may be longer than the window's"
        )
    return slide


def scores(
    forward: Forward, images: Float[Array, "b h w 3"], out_hw: Sequence[int], protocol: Protocol
) -> Float[Array, "b H W k"]:
    """Scores at `out_hw`, float32; see `whole_scores` and `slide_scores`."""
    if protocol is None:
        return whole_scores(forward, images, out_hw)
    return slide_scores(forward, images, out_hw, *protocol)


def whole_scores(
    forward: Forward, images: Float[Array, "b h w 3"], out_hw: Sequence[int]
) -> Float[Array, "b H W k"]:
    """Scores at `out_hw` of images that go through the network in one piece, float32.

    Two resizes, as in the reference: from the head's stride to the network's input, then from there
    to the image's own size. Where both are the same size the second does nothing.
    """
    return resize_bilinear(_input_scores(forward, images), out_hw)


def slide_scores(
    forward: Forward,
    images: Float[Array, "b h w 3"],
    out_hw: Sequence[int],
    crop_hw: Sequence[int],
    stride_hw: Sequence[int],
) -> Float[Array, "b H W k"]:
    """Scores at `out_hw` of images that go through the network in windows, float32.

    The scores of a pixel are averaged over its windows, before any softmax, as the reference does
    it (`slide_inference` of mmsegmentation's EncoderDecoder). Where an image is smaller than
    `crop_hw`, its windows are too.

    The windows follow each other, each for all images at once: the network is compiled for one
    shape, every image stays on its device, and there is one array of sums.
    """
    batch, *image_hw, channels = images.shape
    crop_hw = [min(crop, size) for crop, size in zip(crop_hw, image_hw, strict=True)]
    rows, columns = map(window_starts, image_hw, crop_hw, stride_hw)

    def add_window(total, start):
        corner = (0, *start, 0)
        window = lax.dynamic_slice(images, corner, (batch, *crop_hw, channels))
        found = _input_scores(forward, window)
        found += lax.dynamic_slice(total, corner, found.shape)
        return lax.dynamic_update_slice(total, found, corner), None

    window = jax.ShapeDtypeStruct((batch, *crop_hw, channels), images.dtype)
    classes = jax.eval_shape(forward, window).shape[-1]
    starts = np.array(list(itertools.product(rows, columns)), np.int32)
    total, _ = lax.scan(add_window, jnp.zeros((batch, *image_hw, classes)), starts)

    in_row, in_column = map(_windows_at, image_hw, crop_hw, (rows, columns))
    return resize_bilinear(total / (in_row[:, None, None] * in_column[:, None]), out_hw)


def window_starts(size: int, crop: int, stride: int) -> Int[np.ndarray, "n"]:
    """Where windows of length `crop` <= `size` begin: every `stride`, the last one moved inside."""
    count = (size - crop + stride - 1) // stride + 1
    return np.minimum(np.arange(count) * stride, size - crop)


def _windows_at(size, crop, starts):
    """How many windows every position lies in, float32 [size]."""
    offset = np.arange(size) - starts[:, None]
    return np.sum((offset >= 0) & (offset < crop), axis=0).astype(np.float32)


def _input_scores(forward, images):
    """Scores at the size of the network's input, float32."""
    return resize_bilinear(forward(images).astype(jnp.float32), images.shape[1:3])


def forward_of(
    model: segmentor.Segmentor, variables: segmentor.Variables, num_classes: int | None = None
) -> Forward:
    """The model in evaluation mode as a function of images.

    It gives the first `num_classes` outputs of the head, or all: some published heads have more
    outputs than their dataset has classes.
    """
    return lambda images: segmentor.apply(model, variables, images)[0].logits[..., :num_classes]


def predict(
    model: segmentor.Segmentor,
    variables: segmentor.Variables,
    image: Float[Array, "h w 3"],
    out_hw: Sequence[int],
    protocol: Protocol = None,
    num_classes: int | None = None,
) -> Float[Array, "H W k"]:
    """Class probabilities at `out_hw` of one normalised image.

    Over all outputs of the head, as the reference has it, or over the first `num_classes`.
    """
    forward = forward_of(model, variables, num_classes)
    return jax.nn.softmax(scores(forward, image[None], out_hw, protocol)[0], axis=-1)
