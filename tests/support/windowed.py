"""Views of prepared images through `jaxseg.inference`, without a config or a dataset."""

import jax
import numpy as np

from jaxseg.distributed.sharding import BATCH_SPEC, make_mesh
from jaxseg.inference import tiles
from jaxseg.inference.batcher import Batcher
from jaxseg.inference.windowed_view import WindowedView
from jaxseg.models.segmentation_model import apply_model


def make_batcher(forward, devices=1, crops_per_device=1, kind=Batcher):
    """`forward`, a function of images [b, h, w, 3], as a batcher."""
    mesh = make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:devices])
    sharding = jax.NamedSharding(mesh, BATCH_SPEC)
    run = jax.jit(lambda _, images, sizes: forward(images), out_shardings=sharding)
    return kind(run, {}, mesh, crops_per_device)


def model_batcher(model, variables):
    """A model on one device, one piece after the other."""
    return make_batcher(lambda images: apply_model(model, variables, images)[0].logits)


def view_of(batcher, pixels, out_hw, slide=None, unpadded_hw=None, mirrored=False):
    """A view whose pixels [h, w, 3] are these."""

    def cut(top, left, hw):
        return np.asarray(pixels[top : top + hw[0], left : left + hw[1]], np.float32)

    hw = pixels.shape[:2]
    return WindowedView(batcher, cut, hw, unpadded_hw or hw, out_hw, slide, mirrored)


def logits(view, batcher, hw):
    """The averaged logits at the size of the image, before the softmax."""
    band = view.band(0, hw[0]).result(batcher)
    places, columns = band.columns.part(0, hw[1])
    rows = np.einsum("yp,pqk->yqk", band.rows, band.logits[:, places], optimize=True)
    return np.einsum("xq,yqk->yxk", columns, rows, optimize=True)


def probabilities(views, batcher, hw):
    """The mean over views, of an image that is a tile."""
    bands = [view.band(0, hw[0]).result(batcher) for view in views]
    ((_, found),) = tiles.probabilities(bands, hw[1], batcher.devices)
    return found
