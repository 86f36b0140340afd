"""From images to class scores, by the rules of the reference; knows nothing of datasets."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.models import segmentor
from jaxseg.resize import resize_bilinear

Forward = Callable[[Float[Array, "b h w 3"]], Float[Array, "b p q k"]]


def whole_scores(
    forward: Forward, images: Float[Array, "b h w 3"], out_hw: Sequence[int]
) -> Float[Array, "b H W k"]:
    """Scores at `out_hw` of images that go through the network in one piece, float32.

    Two resizes, as in the reference: from the head's stride to the network's input, then from there
    to the image's own size. Where both are the same size the second does nothing.
    """
    scores = resize_bilinear(forward(images).astype(jnp.float32), images.shape[1:3])
    return resize_bilinear(scores, out_hw)


def forward_of(model: segmentor.Segmentor, variables: segmentor.Variables) -> Forward:
    """The model in evaluation mode as a function of images."""
    return lambda images: segmentor.apply(model, variables, images)[0].logits


def predict(
    model: segmentor.Segmentor,
    variables: segmentor.Variables,
    image: Float[Array, "h w 3"],
    out_hw: Sequence[int],
    num_classes: int | None = None,
) -> Float[Array, "H W k"]:
    """Class probabilities at `out_hw` of one normalised image, in one piece.

    Over all outputs of the head, as the reference has it; or over the first `num_classes`, where a
    head has more outputs than its dataset has classes.
    """
    scores = whole_scores(forward_of(model, variables), image[None], out_hw)[0]
    return jax.nn.softmax(scores[..., :num_classes], axis=-1)
