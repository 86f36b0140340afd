"""Times Mask2Former's matching and loss, compared with a forward pass of a backbone.

python benchmarks/matching.py

There are ten predictions of 200 queries for two images of 512 × 512 pixels, with 60 classes in each
image, compared in 12544 points. The program times the assignment alone, the assignment with its
costs, and the whole loss with all gradients. The forward pass is that of ViT-Adapter-B with
UPerNet. The result is the minimum of several times, as JSON.
"""

import datetime
import json
import os
import platform
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from configs.ade20k import get_config
from jaxseg.losses.mask2former import image_cost, mask2former_loss
from jaxseg.losses.matcher import assign_targets, make_targets
from jaxseg.models.segmentation_model import apply_model, build_model, init_variables
from jaxseg.reporting.manifest import versions

PREDICTIONS, BATCH, QUERIES, TARGETS, CLASSES, POINTS = 10, 2, 200, 60, 150, 12544
HW, MASK_HW = (512, 512), (128, 128)
FORWARD = "upernet_deit_adapter_b"
ROUNDS = 3


def main():
    random = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    class_logits = draw(PREDICTIONS, BATCH, QUERIES, CLASSES + 1)
    mask_logits = draw(PREDICTIONS, BATCH, QUERIES, *MASK_HW)
    # Blocks of 64 pixels; each of the first 60 classes occurs in some block.
    blocks = np.stack([random.permutation(np.arange(64) % TARGETS) for _ in range(BATCH)])
    labels = blocks.reshape(BATCH, 8, 8).repeat(64, axis=1).repeat(64, axis=2)
    labels = jnp.asarray(labels, jnp.int32)
    points = jnp.asarray(random.random((PREDICTIONS, BATCH, POINTS, 2)), jnp.float32)
    targets, valid, _ = make_targets(labels, CLASSES, TARGETS)

    def costs(class_logits, mask_logits, points):
        of_images = jax.vmap(image_cost)
        return lax.map(
            lambda of: of_images(of[0], of[1], labels, targets, of[2]),
            (class_logits, mask_logits, points),
        )

    assign_all = jax.vmap(jax.vmap(assign_targets), in_axes=(0, None))
    loss = partial(mask2former_loss, num_points=POINTS, max_targets=TARGETS)
    gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

    config = get_config(FORWARD)
    model = build_model(config.model)
    variables = init_variables(model, jax.random.key(0), HW)
    images = draw(BATCH, *HW, 3)

    logits = (class_logits, mask_logits)
    milliseconds = {
        "assignment": least_time(assign_all, costs(*logits, points), valid),
        "matching": least_time(lambda *x: assign_all(costs(*x), valid), *logits, points),
        "loss and gradients": least_time(gradients, *logits, labels, jax.random.key(0)),
        "forward": least_time(
            lambda variables, images: apply_model(model, variables, images, train=False)[0],
            variables,
            images,
        ),
    }
    device = jax.devices()[0]
    result = {
        "milliseconds": milliseconds,
        "shape": f"{PREDICTIONS} predictions, batch {BATCH}, {QUERIES} queries, {TARGETS} targets,"
        f" {POINTS} points, masks of {MASK_HW[0]} x {MASK_HW[1]}",
        "forward": f"{FORWARD}, batch {BATCH}, {HW[0]} x {HW[1]}, {config.model.dtype}",
        "device": f"{device.device_kind}, {os.cpu_count()} CPU cores, {platform.machine()}",
        "date": datetime.date.today().isoformat(),
        **versions(),
    }
    print(json.dumps(result, indent=1))


def least_time(function, *arguments):
    """Returns the minimum time of a function, in milliseconds."""
    function, times = jax.jit(function), []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - started)
    return round(1e3 * min(times[1:]), 1)  # the first call compiles


if __name__ == "__main__":
    main()
