"""python -m jaxseg.selftest [--json FILE]: does jaxseg compute the right numbers on this device?

Four kinds of checks, in about a minute:

* each operator for deformable sampling, as models call it on this device: output and gradients
  against the definition (`pallas_kernels.reference`), at three shapes, in float32 and bfloat16;
* one small model of each family: logits, loss and the norm of the gradient against numbers that
  come with the package (`selftest_numbers.json`), and the loss after one update;
* a checkpoint, written and read;
* what the device, its memory, its driver and the installed packages are, for a report.

The exit status is 0 if all checks pass, else 1. `--write-numbers FILE` writes the numbers of this
machine in the form of `selftest_numbers.json`; it is for those who change a model.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import math
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

import pallas_kernels
from jaxseg import checkpoints, kernels, optim, paths, train_step
from jaxseg.models import segmentor
from jaxseg.report import versions
from pallas_kernels import choice, reference

NUMBERS = pathlib.Path(__file__).with_name("selftest_numbers.json")
CLASSES = 5
IMAGE_HW = (64, 64)
# Relative to the largest expected value. Float32 sums in another order differ by 1e-6. Rounding a
# result to bfloat16 changes it by up to 2⁻⁸; twice that is allowed. Coordinates stay in float32.
FLOAT32 = {"output": 1e-5, "value": 1e-4, "places": 1e-4, "weights": 1e-4}
BFLOAT16 = {"output": 2**-7, "value": 2**-7, "places": 1e-3, "weights": 1e-3}
# Of whole models in float32, whose layers add up the differences of their operators.
MODEL = {"logits": 1e-4, "loss": 1e-5, "gradient_norm": 1e-3, "loss_after_a_step": 1e-3}


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
      name: what was checked.
      error: the largest error as a share of what is allowed; not more than 1 passes.
      worst: the quantity with that error, or what was raised.
      seconds: how long the check took.
    """

    name: str
    error: float
    worst: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.error <= 1  # not for NaN


def compiled(function: Callable) -> Callable:
    """`jax.jit`; on CPU without LLVM's optimizations, for most of the time is compilation."""
    on_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else {}
    return jax.jit(function, compiler_options=options)


def relative_error(value: Any, expected: Any) -> float:
    """The largest difference as a share of the largest expected value."""
    value, expected = (np.asarray(x, np.float64) for x in (value, expected))
    return float(np.max(np.abs(value - expected)) / max(np.max(np.abs(expected)), 1e-30))


def checked(name: str, errors: Callable[[], dict[str, tuple[float, float]]]) -> Check:
    """Runs a check.

    Args:
      name: what is checked.
      errors: gives, for each quantity, its error and the tolerance for it.
    """
    begun = time.perf_counter()
    try:
        shares = {key: error / tolerance for key, (error, tolerance) in errors().items()}
        worst = max(shares, key=lambda key: math.inf if np.isnan(shares[key]) else shares[key])
        share = shares[worst]
    except Exception as error:  # a check that cannot run has failed, and the others go on
        lines = str(error).strip().splitlines() or [""]
        worst, share = f"{type(error).__name__}: {lines[0]}", math.inf
    return Check(name, share, worst, time.perf_counter() - begun)


# Operators


def dcnv3_case(height: int, width: int, groups: int, channels: int, images: int = 1):
    """A call of DCNv3: (operator -> function of its arrays), and these as float32."""
    random = np.random.default_rng(0)
    hw = (images, height, width)
    arrays = (
        random.standard_normal((*hw, groups * channels)),
        2 * random.standard_normal((*hw, groups * 18)),
        random.random((*hw, groups * 9)),
    )
    geometry = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1}

    def bind(operator):
        return functools.partial(operator, **geometry, groups=groups, offset_scale=1.0)

    return bind, arrays


def ms_deform_attn_case(
    queries: int, levels: tuple[tuple[int, int], ...], heads: int, channels: int, images: int = 1
):
    """As `dcnv3_case`, for multi-scale deformable attention; some points lie outside."""
    random = np.random.default_rng(0)
    pixels = sum(height * width for height, width in levels)
    sampled = (images, queries, heads, len(levels), 4)
    arrays = (
        random.standard_normal((images, pixels, heads, channels)),
        random.uniform(-0.1, 1.1, (*sampled, 2)),
        random.random(sampled) / (4 * len(levels)),
    )
    return lambda operator: lambda value, *others: operator(value, levels, *others), arrays


CASES = {
    "dcnv3": {
        "small": functools.partial(dcnv3_case, 4, 6, 2, 4),
        "odd": functools.partial(dcnv3_case, 7, 13, 3, 5, images=2),
        "published": functools.partial(dcnv3_case, 16, 32, 32, 16),  # InternImage-T, stage 4
    },
    "ms_deform_attn": {
        "small": functools.partial(ms_deform_attn_case, 6, ((4, 4), (2, 2)), 2, 4),
        "odd": functools.partial(ms_deform_attn_case, 7, ((7, 5), (3, 4), (1, 2)), 3, 5, images=2),
        # The injectors of ViT-Adapter-T at 256 × 256.
        "published": functools.partial(
            ms_deform_attn_case, 256, ((32, 32), (16, 16), (8, 8)), 6, 32
        ),
    },
}


def operator_errors(operator: str, shape: str, dtype: str) -> dict[str, tuple[float, float]]:
    """Errors of an operator's output and gradients against those of the definition in float32."""
    bind, (value, places, weights) = CASES[operator][shape]()
    value = jnp.asarray(value, dtype)
    places, weights = (jnp.asarray(x, jnp.float32) for x in (places, weights))
    here = bind(getattr(pallas_kernels, operator))
    definition = bind(getattr(reference, operator))
    cotangent = jnp.cos(jnp.arange(jax.eval_shape(here, value, places, weights).size))
    results = _with_gradients(here, value, places, weights, cotangent)
    expected = _with_gradients(definition, value.astype(jnp.float32), places, weights, cotangent)
    tolerances = FLOAT32 if dtype == "float32" else BFLOAT16
    return {
        name: (relative_error(result.astype(jnp.float32), exact), tolerances[name])
        for name, result, exact in zip(tolerances, results, expected, strict=True)
    }


def kernel_errors() -> dict[str, tuple[float, float]]:
    """Kernels for this device that gave way to XLA, in the checks so far."""
    refused = choice.refusals()
    return {f"{name}: {reason}": (1, 0.5) for name, reason in refused.items()} or {"": (0, 0.5)}


def _with_gradients(operator, value, places, weights, cotangent):
    """The output, and the gradients of the three arrays."""

    def run(value, places, weights):
        output, transpose = jax.vjp(operator, value, places, weights)
        # Exact in bfloat16, so that all types have the same cotangent.
        rounded = cotangent.astype(jnp.bfloat16).astype(output.dtype)
        return output, *transpose(rounded.reshape(output.shape))

    return compiled(run)(value, places, weights)


# Models

SEGFORMER = {"kind": "segformer", "num_classes": CLASSES, "channels": 16, "dropout": 0.0}
MASK2FORMER = {
    "kind": "mask2former",
    "num_classes": CLASSES,
    "channels": 16,
    "num_queries": 8,
    "num_heads": 2,
    "encoder_layers": 1,
    "encoder_ffn_dim": 24,
    "decoder_layers": 1,
    "decoder_ffn_dim": 24,
    "norm_groups": 4,
}
ADAPTER = {
    "embed_dim": 12,
    "depth": 1,
    "num_heads": 3,
    "interaction_indexes": ((0, 0),),
    "deform_num_heads": 3,
    "conv_inplane": 4,
    "add_vit_feature": False,  # which takes four interactions
    "extra_extractors": 1,
}
INTERN_IMAGE = {
    "kind": "intern_image",
    "channels": 8,
    "depths": (1, 1),
    "groups": (1, 2),
    "layer_scale": 1.0,
}
MODELS = {
    "InternImage, SegFormerHead": (INTERN_IMAGE, SEGFORMER),
    "ViT-Adapter, SegFormerHead": (
        {"kind": "vit_adapter", **ADAPTER, "pretrain_grid": 4},
        SEGFORMER,
    ),
    "BEiT-Adapter, Mask2Former": (
        {"kind": "beit_adapter", **ADAPTER, "window": (4, 4)},
        MASK2FORMER,
    ),
}


def config_of(backbone: dict[str, Any], head: dict[str, Any]) -> ConfigDict:
    """A config for training a small model in float32."""
    return ConfigDict(
        {
            "seed": 0,
            "steps": 10,
            "sharding": (),
            "model": {
                "dtype": "float32",
                "backbone": backbone,
                "decode_head": head,
                "auxiliary_head": None,
            },
            "loss": {
                "auxiliary_weight": 0.4,
                "mask2former": {"num_points": 64, "max_targets": CLASSES},
            },
            "optim": {
                "lr": 1e-3,
                "layer_decay": 1.0,
                "custom_keys": (),
                "betas": (0.9, 0.999),
                "weight_decay": 0.05,
                "warmup_steps": 0,
                "warmup_ratio": 1.0,
                "power": 1.0,
                "clip_norm": 1.0,
                "accumulation": 1,
                "ema_decay": 0.0,
            },
        }
    )


def weights_of(path: str, shape: Sequence[int]) -> np.ndarray:
    """The weights of a parameter, from its path: the same on every machine."""
    random = np.random.Generator(np.random.Philox(zlib.crc32(path.encode())))
    normal = random.standard_normal(shape, dtype=np.float32)
    leaf = path.rpartition("/")[2]
    if leaf == "var":
        return 1 + np.abs(normal)
    if leaf in ("scale", "gamma1", "gamma2"):
        return 1 + 0.1 * normal
    if len(shape) > 1:
        return normal / np.float32(math.sqrt(math.prod(shape[:-1])))
    return 0.02 * normal


def filled(model: segmentor.Segmentor) -> segmentor.Variables:
    """Variables of a model with `weights_of` their paths."""
    shapes = paths.shapes(segmentor.shapes(model))
    arrays = {path: jnp.asarray(weights_of(path, shape)) for path, shape in shapes.items()}
    return {"batch_stats": {}} | paths.nested(arrays)


def model_numbers(name: str) -> dict[str, list[float]]:
    """Logits of a small model in evaluation; loss, gradient norm, and the loss after an update."""
    config = config_of(*MODELS[name])
    model = segmentor.build(config.model)
    variables = filled(model)
    random = np.random.default_rng(0)
    label = random.integers(0, CLASSES, (2, 4, 4)).repeat(16, axis=1).repeat(16, axis=2)
    noise = random.standard_normal((2, *IMAGE_HW, 3))
    image = jnp.asarray(noise + label[..., None] / 2, jnp.float32)

    def evaluate(variables, image):
        return segmentor.apply(model, variables, image)[0].logits

    logits = np.asarray(compiled(evaluate)(variables, image)).ravel()
    with jax.numpy_dtype_promotion("standard"):  # optax raises Python numbers
        optimizer = optim.make(config.optim, config.model.backbone, config.steps)
        opt_state = optimizer.init(variables["params"])
        state = train_step.TrainState(jnp.zeros((), jnp.int32), **variables, opt_state=opt_state)
        step = compiled(train_step.make_train_step(config, model, optimizer))
        batch = {"image": image, "label": jnp.asarray(label, jnp.int32)}
        state, first = step(state, batch)
        # The same random numbers again: what differs is the update alone.
        _, second = step(state.replace(step=jnp.zeros((), jnp.int32)), batch)
    return {
        "logits": [float(x) for x in logits[:: max(1, len(logits) // 64)]],
        "loss": [float(first["loss"])],
        "gradient_norm": [float(first["gradient_norm"])],
        "loss_after_a_step": [float(second["loss"])],
    }


def model_errors(name: str) -> dict[str, tuple[float, float]]:
    """Errors of a small model against the numbers that come with the package."""
    expected = json.loads(NUMBERS.read_text())[name]
    found = model_numbers(name)
    return {key: (relative_error(found[key], expected[key]), MODEL[key]) for key in MODEL}


# Checkpoints


def checkpoint_errors() -> dict[str, tuple[float, float]]:
    """How many arrays of a checkpoint are not read as they were written."""
    config = config_of(INTERN_IMAGE, SEGFORMER)
    model = segmentor.build(config.model)
    written = filled(model)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda leaf: leaf.update(sharding=device), segmentor.shapes(model))
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        checkpoints.save_weights(run, written, config.to_dict())
        found = checkpoints.load_variables(checkpoints.find(run), abstract)
    pairs = zip(jax.tree.leaves(written), jax.tree.leaves(found), strict=True)
    changed = sum(not np.array_equal(a, b) for a, b in pairs)
    return {"arrays that changed": (changed, 0.5)}


# The whole


def facts() -> dict[str, str]:
    """The machine, its devices and the installed versions."""
    device = jax.devices()[0]
    limits = [(d.memory_stats() or {}).get("bytes_limit") for d in jax.local_devices()]
    found = {
        "devices": f"{jax.device_count()} {device.device_kind} ({device.platform})",
        "memory": f"{limits[0] / 1e9:.1f} GB a device" if limits[0] else "not reported",
        "platform": " ".join(device.client.platform_version.split()),
        "kernels": kernels.describe({}),
        "machine": platform.platform(),
    }
    if device.platform == "gpu" and (driver := _nvidia_driver()):
        found["driver"] = driver
    return found | versions()


def _nvidia_driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout else None


def checks() -> Iterator[Check]:
    """All checks, one after the other."""
    for operator, shapes in CASES.items():
        for shape in shapes:
            for dtype in ("float32", "bfloat16"):
                arguments = (operator, shape, dtype)
                yield checked(" ".join(arguments), functools.partial(operator_errors, *arguments))
    yield checked("kernels compile here", kernel_errors)
    for name in MODELS:
        yield checked(name, functools.partial(model_errors, name))
    yield checked("checkpoint", checkpoint_errors)


def write_numbers(file: pathlib.Path):
    """Writes what `model_errors` compares with."""
    file.write_text(json.dumps({name: model_numbers(name) for name in MODELS}, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m jaxseg.selftest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the results there")
    parser.add_argument("--write-numbers", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.ERROR)  # checkpointing writes lines about each save
    # GPUs and TPUs would multiply float32 matrices in fewer bits.
    with jax.default_matmul_precision("highest"):
        if options.write_numbers:
            write_numbers(options.write_numbers)
            return
        machine = facts()
        for name, value in machine.items():
            print(f"{name:<18}{value}")
        print(f"\n{'check':<32}{'error / allowed':>16}{'seconds':>9}")
        found = []
        for check in checks():
            found.append(check)
            verdict = "" if check.passed else f"  FAILED: {check.worst}"
            print(f"{check.name:<32}{check.error:>16.3f}{check.seconds:>9.1f}{verdict}", flush=True)
    failed = [check.name for check in found if not check.passed]
    seconds = sum(check.seconds for check in found)
    print(f"\n{len(found) - len(failed)} of {len(found)} checks passed in {seconds:.0f} s")
    if options.json:
        result = {
            "facts": machine,
            "date": datetime.date.today().isoformat(),
            "passed": not failed,
            "checks": [{**dataclasses.asdict(c), "passed": c.passed} for c in found],
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if failed:
        sys.exit(f"jaxseg.selftest: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
