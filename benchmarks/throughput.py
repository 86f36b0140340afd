"""Measures how fast a recipe trains or predicts on the devices here, with synthetic batches.

    python benchmarks/throughput.py --config configs/cityscapes.py:upernet_internimage_t \\
        --what train --batch 8 [--json FILE] [--config.KEY=VALUE …]

The program compiles the real train step, or the forward pass of a batch of images or windows at
test size, in the recipe's type. It runs the executable on one batch of random images that stays on
the devices. Weights are those of the initialization. Their sampling offsets are zero or the same
everywhere, which is the best case for caches and for the TPU kernels. The time is the median of the
steps after the first three.

`--batch 0` doubles the batch until it no longer fits, and reports the largest that fits. MFU is the
model's own operations over the time and the peak of the data sheet (`jaxseg.aot.hardware`). The
operations are those of `jaxseg.models.flops`; a train step has three times those of the forward
pass. MFU is missing on devices that are not in the data sheets.
"""

import argparse
import datetime
import json
import pathlib
import statistics
import time

import jax
import numpy as np

from jaxseg.aot import hardware
from jaxseg.aot.costs import model_flops
from jaxseg.aot.programs import trace_evaluation, trace_train_step
from jaxseg.config import load_config
from jaxseg.distributed.sharding import check_batch, make_mesh
from jaxseg.models import kernels
from jaxseg.models.segmentation_model import ANY_HW, build_model, init_variables
from jaxseg.reporting.manifest import device_memory, versions
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.state import init_state
from pallas_kernels import choice
from pallas_kernels.gpu import block_sizes

WARM_UP = 3
WHAT = {"train": "train", "predict": "eval"}  # -> what `model_flops` calls it


def program(config, what, mesh):
    """Compiles the step or the forward pass.

    Returns:
      A function without arguments that runs the executable, the seconds of compilation, whether
      JAX's cache already had the executable, and the abstract images.
    """
    if what == "train":
        traced, state, image = trace_train_step(config, mesh)
    else:
        traced, state, image = trace_evaluation(config, mesh)
    hits = []

    def listen(event, **_):
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    begun = time.perf_counter()
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - begun
    jax.monitoring.unregister_event_listener(listen)
    random = np.random.default_rng(0)
    images = jax.device_put(random.standard_normal(image.shape, np.float32), image.sharding)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    if what == "train":
        model = build_model(config.model, config.deterministic)
        optimizer = make_optimizer(config.optim, config.model.backbone, config.steps)
        labels = random.integers(0, 19, image.shape[:3]).astype(np.int32)
        batch = {"image": images, "label": jax.device_put(labels, image.sharding)}
        fresh = jax.jit(lambda: init_state(config, model, optimizer), out_shardings=shardings)
        holder = [fresh()]

        def run():
            holder[0], logs = compiled(holder[0], batch)
            jax.block_until_ready(logs)
    else:
        model = build_model(config.model)
        key = jax.random.key(config.seed)
        variables = jax.jit(lambda: init_variables(model, key, ANY_HW), out_shardings=shardings)()

        def run():
            jax.block_until_ready(compiled(variables, images))

    return run, seconds, bool(hits), image


def measure(config, what, batch, steps):
    """Returns the figures of one batch size."""
    mesh = make_mesh(config.mesh)
    if what == "train":
        config.batch_size = batch * mesh.size
        check_batch(config.batch_size, config.optim.accumulation, mesh)
    else:
        config.eval.images_per_device = batch
    run, compile_seconds, compiled_before, image = program(config, what, mesh)
    times = []
    for _ in range(WARM_UP + steps):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    seconds = statistics.median(times[WARM_UP:])
    figures = {
        "batch": image.shape[0],
        "hw": image.shape[1:3],
        "step_milliseconds": round(1e3 * seconds, 3),
        "images_per_second": round(image.shape[0] / seconds, 2),
        "compile_seconds": round(compile_seconds, 1),
        "compiled_before": compiled_before,
    }
    if memory := device_memory():
        figures |= {"peak_gigabytes": round(memory[0] / 1e9, 2)}
    if chip := hardware.chip_of_device(jax.devices()[0].device_kind):
        operations = model_flops(config, image, WHAT[what])
        figures |= {"mfu": round(operations / seconds / mesh.size / chip.flops, 4)}
    return figures


def largest(config, what, steps):
    """Returns the figures of the largest batch that fits.

    Batches are powers of two, from 8 images per device. Every size is compiled and run. The error
    that ended the search is part of the figures.
    """
    found, batch = None, 8
    while True:
        try:
            found = measure(config, what, batch, steps)
        except jax.errors.JaxRuntimeError as error:
            if found is None:
                raise
            return found | {"next": f"{batch} a device: {str(error).splitlines()[0]}"}
        batch *= 2


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE:VARIANT")
    parser.add_argument("--what", choices=("train", "predict"), default="train")
    parser.add_argument("--batch", type=int, default=8, help="images per device; 0: the largest")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    options, overrides = parser.parse_known_args()
    config = load_config(options.config, overrides)
    arguments = (config, options.what)
    if options.batch:
        figures = measure(*arguments, options.batch, options.steps)
    else:
        figures = largest(*arguments, options.steps)
    device = jax.devices()[0]
    result = {
        "config": config.variant,
        "overrides": overrides,
        "what": options.what,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "kernels": kernels.describe_kernels(config.model),
        "kernels_refused": choice.refusals(),
        "tuned": device.device_kind in block_sizes.TUNED,
        **figures,
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
