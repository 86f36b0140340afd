"""Mask2Former where rounding decides what a query attends to: decided as in a recording.

A query attends to the cells of a map where its mask logit is not negative. Where a mask logit is
within rounding of 0, the original may have decided otherwise, and all later predictions differ by
more than rounding (by up to 2.3e-3 of the largest value for one cell, as measured). The recording
tells how: with the right decision, the errors of the next prediction are those of rounding again.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float

from converters import verify
from converters.recording import Recording
from jaxseg.models.heads import mask2former_head
from jaxseg.models.heads.pixel_decoder import MSDeformAttnPixelDecoder
from jaxseg.models.segmentation_model import build_model
from jaxseg.ops.resize import resize_bilinear

# As a share of the largest mask logit; the errors that are measured of mask logits are 3e-6.
UNDECIDED = 1e-5


class Given(nn.Module):
    """Stands for the pixel decoder: its outputs are given as if they were features."""

    @nn.compact
    def __call__(self, outputs):
        mask_features, *maps = outputs
        return mask_features, maps


def decided_as_recorded(config, variables, recorded: Recording, monkeypatch):
    """Returns the relative errors of the head's outputs, and the cells that were decided otherwise.

    A cell is decided otherwise only if it is undecided and that lowers the error of its query in
    the next prediction.

    Returns:
      The errors by the names of the recording, as `verify.compare` counts them; and for every
      layer of the decoder the list of (query, row, column).
    """
    model = build_model(config.model)
    given = _pixel_decoder_outputs(model, variables, recorded.images)
    predict = _decoder(model, variables, given, recorded.images.shape[1:3], monkeypatch)
    _, maps = given
    turned = [
        np.zeros((model.decode_head.num_queries, *maps[i % len(maps)].shape[1:3], 1), bool)
        for i in range(model.decode_head.decoder_layers)
    ]
    outputs, undecided = predict(turned)
    for layer, flags in enumerate(turned):
        errors = _by_query(outputs, recorded, layer + 1)
        tried = np.zeros_like(flags)
        while errors.max() > verify.TOLERANCE:
            candidates = np.argwhere(undecided[layer] & ~tried)
            if not len(candidates):
                break
            cell = tuple(max(candidates, key=lambda cell: errors[cell[0]]))
            tried[cell], flags[cell] = True, True
            others, close = predict(turned)
            lowered = _by_query(others, recorded, layer + 1)
            if lowered[cell[0]] < errors[cell[0]]:
                outputs, undecided, errors = others, close, lowered
            else:
                flags[cell] = False
    errors = {
        name: float(_errors(outputs[name], samples).max())
        for name, samples in recorded.tensors.items()
        if name in outputs
    }
    return errors, [[tuple(cell[:3]) for cell in np.argwhere(flags)] for flags in turned]


@functools.partial(jax.jit, static_argnums=0)
def _pixel_decoder_outputs(model, variables, images):
    _, captured = model.apply(
        variables,
        images,
        method=lambda model, images: model.decode_head(model.backbone(images), train=False),
        capture_intermediates=lambda module, _: isinstance(module, MSDeformAttnPixelDecoder),
        mutable=["intermediates"],
    )
    (outputs,) = captured["intermediates"]["decode_head"]["pixel_decoder"]["__call__"]
    return outputs


def _decoder(model, variables, given, image_hw, monkeypatch):
    """Returns a function from the turned cells to the head's outputs and the undecided cells.

    The cells of a layer are an array [q, h, w, 1]; the batch is one image.
    """

    @jax.jit
    def predict(variables, given, turned):
        cells, undecided = iter(turned), []

        def resized(mask_logits, hw):
            logits = resize_bilinear(mask_logits, hw)
            undecided.append(jnp.abs(logits) < UNDECIDED * jnp.max(jnp.abs(mask_logits)))
            return jnp.where(next(cells), -logits, logits)

        mask_features, maps = given
        with monkeypatch.context() as patch:
            patch.setattr(mask2former_head, "resize_bilinear", resized)
            patch.setattr(mask2former_head, "MSDeformAttnPixelDecoder", lambda *_, name: Given())
            masks = model.decode_head.apply(
                {"params": variables["params"]["decode_head"]},
                [mask_features, *maps],
                train=False,
            )
        semantic = masks.semantic()
        outputs = {f"class_logits/{i}": x for i, x in enumerate(masks.class_logits)}
        outputs |= {f"mask_logits/{i}": x for i, x in enumerate(masks.mask_logits)}
        outputs["logits"] = jnp.moveaxis(semantic, -1, 1)
        outputs["output"] = jnp.moveaxis(resize_bilinear(semantic, image_hw), -1, 1)
        return outputs, undecided

    return lambda turned: jax.device_get(predict(variables, given, turned))


def _errors(value, samples):
    return np.abs(value.ravel()[samples.index] - samples.values) / samples.largest


def _by_query(outputs, recorded, prediction) -> Float[np.ndarray, " q"]:
    """Returns the largest error of each query in a prediction."""
    worst = np.zeros(outputs["class_logits/0"].shape[1])
    for name in (f"class_logits/{prediction}", f"mask_logits/{prediction}"):
        samples = recorded.tensors[name]
        queries = np.unravel_index(samples.index, samples.shape)[1]
        np.maximum.at(worst, queries, _errors(outputs[name], samples))
    return worst
