"""Compiles the train step or the forward pass of a recipe and gives it a batch of random images."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg.aot.programs import trace_evaluation, trace_train_step
from jaxseg.distributed.sharding import local_row_indices, put_batch
from jaxseg.models.segmentation_model import ANY_HW, build_model, init_variables
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.state import init_state

CACHE_HIT = "/jax/compilation_cache/cache_hits"


class Program(NamedTuple):
    """A compiled program with its arguments.

    Attributes:
      run: runs it once and waits for all of its outputs.
      compile_seconds: the time to trace and compile it.
      compiled_before: whether JAX's compilation cache had it.
      batch_shape: the shape of its images, [b, h, w, 3].
    """

    run: Callable[[], None]
    compile_seconds: float
    compiled_before: bool
    batch_shape: tuple[int, ...]


def compile_program(config: ConfigDict, what: str, mesh: Mesh) -> Program:
    """Compiles what `jaxseg train` or `jaxseg predict` compiles, for the batch of the config.

    The images are made once and stay on the devices. The weights are those of the initialization.
    Every train step donates its state and goes on from the state of the one before.

    Args:
      config: the resolved config.
      what: "train" or "infer".
      mesh: the devices.
    """
    hits = []

    def listen(event, **_):
        if event == CACHE_HIT:
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    begun = time.perf_counter()
    trace = {"train": trace_train_step, "infer": trace_evaluation}[what]
    traced, inputs, images = trace(config, mesh)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - begun
    jax.monitoring.unregister_event_listener(listen)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, inputs)
    batch = random_batch(config, images.shape, mesh)
    make_run = {"train": _train_run, "infer": _inference_run}[what]
    run = make_run(config, compiled, shardings, batch)
    return Program(run, seconds, bool(hits), images.shape)


def random_batch(config: ConfigDict, shape: tuple[int, ...], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns normal images and labels of random classes, sharded over the devices of the mesh.

    Args:
      config: the config, whose head has the classes.
      shape: the shape of the images, [b, h, w, 3].
      mesh: the devices.
    """
    rng = np.random.default_rng(jax.process_index())
    rows, classes = len(local_row_indices(mesh, shape[0])), config.model.decode_head.num_classes
    image = rng.standard_normal((rows, *shape[1:]), np.float32)
    label = rng.integers(0, classes, (rows, *shape[1:3]), np.int32)
    return put_batch({"image": image, "label": label}, mesh)


def _train_run(config, compiled, shardings, batch):
    model = build_model(config.model, config.deterministic)
    optimizer = make_optimizer(config.optim, config.model.backbone, config.steps)
    fresh = jax.jit(lambda: init_state(config, model, optimizer), out_shardings=shardings)
    state = fresh()

    def run():
        nonlocal state
        state, logs = compiled(state, batch)
        jax.block_until_ready((state, logs))

    return run


def _inference_run(config, compiled, shardings, batch):
    model, key = build_model(config.model), jax.random.key(config.seed)
    variables = jax.jit(lambda: init_variables(model, key, ANY_HW), out_shardings=shardings)()
    return lambda: jax.block_until_ready(compiled(variables, batch["image"]))
