"""Times every implementation of the operators at the sizes of the published models.

jaxseg bench kernels [--shapes PATTERN …] [--implementation NAME] [--batch 2] [--dtype bfloat16]
    [--autotune [--write]] [--json FILE]

A time is the median of repeated calls; all implementations of a size are called in turn. The table
also compares the time with the device's bandwidth, which is measured by copying an array. It gives
the share of this bandwidth that the least possible traffic would take in this time. The least
possible traffic reads every input once and writes every output once. 100 % cannot be exceeded.

With `--autotune`, the program times the GPU kernels with every block size worth trying. For each
kernel it prints the block size with the least total time over all shapes. `--write` adds these
sizes to `tuned_block_sizes.json`, which the kernels read.
"""

import argparse
import collections
import datetime
import fnmatch
import functools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels
from pallas_kernels import shapes
from pallas_kernels.gpu import block_sizes
from pallas_kernels.gpu import operators as gpu
from pallas_kernels.gpu.block_sizes import BlockSize, Kernel
from pallas_kernels.relative_positions import table_rows

COMPARED = {"cpu": ["xla"], "gpu": ["gpu", "xla"], "tpu": ["tpu", "xla"]}  # by platform
COPIED_BYTES = 1 << 28
REPEATS = 10


def dcnv3_case(call: shapes.DCNv3, batch: int, dtype) -> tuple[Callable, list[jax.Array]]:
    """Returns what is needed to call DCNv3 at one size, with random arguments.

    Returns:
      A function that binds the geometry to an implementation of dcnv3, and the arguments that the
      bound function takes. Offsets are about 1, as in a trained model.
    """
    random = np.random.default_rng(0)
    hw, points = (batch, call.height, call.width), 9 * call.groups
    value = random.standard_normal((*hw, call.groups * call.group_channels), np.float32)
    offset = random.standard_normal((*hw, 2 * points), np.float32)
    mask = random.random((*hw, points), np.float32) / 9

    def bind(dcnv3):
        geometry = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1}
        return functools.partial(dcnv3, **geometry, groups=call.groups, offset_scale=1.0)

    return bind, [jnp.asarray(value, dtype), jnp.asarray(offset), jnp.asarray(mask)]


def ms_deform_attn_case(
    call: shapes.MSDeformAttn, batch: int, dtype
) -> tuple[Callable, list[jax.Array]]:
    """Returns the same as `dcnv3_case` for multi-scale deformable attention.

    Each query samples within a few pixels of its own place.
    """
    random = np.random.default_rng(0)
    pixels = sum(height * width for height, width in call.levels)
    value = random.standard_normal((batch, pixels, call.heads, call.head_channels), np.float32)
    shape = (batch, call.queries, call.heads, len(call.levels), call.points)
    places = np.linspace(0, 1, call.queries, dtype=np.float32)  # row by row
    side = call.queries**0.5
    place = np.stack([places * side % 1, places], axis=-1)[None, :, None, None, None]
    sizes = np.array([(width, height) for height, width in call.levels], np.float32)
    locations = place + 2 * random.standard_normal((*shape, 2), np.float32) / sizes[:, None]
    weights = random.random(shape, np.float32) / (len(call.levels) * call.points)

    def bind(ms_deform_attn):
        return lambda value, locations, weights: ms_deform_attn(
            value, call.levels, locations, weights
        )

    return bind, [jnp.asarray(value, dtype), jnp.asarray(locations), jnp.asarray(weights)]


def self_attention_case(
    call: shapes.SelfAttention, batch: int, dtype
) -> tuple[Callable, list[jax.Array]]:
    """Returns the same as `dcnv3_case` for self-attention, with a table if there is a grid."""
    random = np.random.default_rng(0)
    width = 3 * call.heads * call.head_channels
    arrays = [jnp.asarray(random.standard_normal((batch, call.tokens, width), np.float32), dtype)]
    if call.grid:
        rows = table_rows(call.grid)
        arrays.append(jnp.asarray(random.standard_normal((rows, call.heads), np.float32)))

    def bind(self_attention):
        return functools.partial(self_attention, num_heads=call.heads, grid=call.grid)

    return bind, arrays


CASES = {
    shapes.DCNv3: ("dcnv3", dcnv3_case),
    shapes.MSDeformAttn: ("ms_deform_attn", ms_deform_attn_case),
    shapes.SelfAttention: ("self_attention", self_attention_case),
}


def directions(operator: Callable, arguments: Sequence[jax.Array]) -> dict[str, tuple]:
    """Returns, by direction, a jitted function, its arguments, and the least bytes it must move."""
    forward = jax.jit(operator)
    cotangent = jnp.ones_like(jax.eval_shape(forward, *arguments))

    def backward(cotangent, *arguments):
        return jax.vjp(operator, *arguments)[1](cotangent)

    read = sum(x.nbytes for x in arguments)
    return {
        "forward": (forward, arguments, read + cotangent.nbytes),
        # The count does not rely on residuals of the forward pass: the gradient reads its inputs
        # again.
        "backward": (jax.jit(backward), [cotangent, *arguments], 2 * read + cotangent.nbytes),
    }


def seconds(functions: dict[Any, tuple[Callable, Sequence[jax.Array]]]) -> dict[Any, float]:
    """Returns the median time of each function; the functions are called in turn."""
    times = {name: [] for name in functions}
    for repeat in range(REPEATS + 1):
        for name, (function, arguments) in functions.items():
            begun = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            if repeat:  # the first call compiles
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(found) for name, found in times.items()}


def copy_bandwidth() -> float:
    """Measures the bytes per second of reading one array and writing another."""
    array = jnp.zeros(COPIED_BYTES // 4, jnp.float32)
    copy = {"copy": (jax.jit(lambda x: x + 1), [array])}
    return 2 * array.nbytes / seconds(copy)["copy"]


def measure(
    call: shapes.Call,
    implementations: Sequence[str],
    batch: int,
    dtype: Any,
    bandwidth: float,
) -> list[dict[str, Any]]:
    """Measures one call: a row for every direction and every implementation.

    An implementation that does not support the call has a single row with the reason.
    """
    operator, case = CASES[type(call)]
    bind, arguments = case(call, batch, dtype)
    rows, found, least = [], {"forward": {}, "backward": {}}, {}
    for name in implementations:
        try:
            named = functools.partial(getattr(pallas_kernels, operator), implementation=name)
            for direction, (function, given, moved) in directions(bind(named), arguments).items():
                found[direction][name] = function, given
                least[direction] = moved
        except ValueError as error:  # it does not support the call; the message says why
            rows.append({"implementation": name, "refused": str(error)})
    for direction, functions in found.items():
        for name, taken in seconds(functions).items():
            rows.append(
                {
                    "implementation": name,
                    "direction": direction,
                    "milliseconds": round(1e3 * taken, 3),
                    "least_megabytes": round(least[direction] / 1e6, 1),
                    "of_bandwidth": round(least[direction] / taken / bandwidth, 3),
                }
            )
    return rows


def compare(
    calls: Sequence[tuple[str, Any]],
    implementations: Sequence[str],
    batch: int,
    dtype: Any,
    bandwidth: float,
) -> list[dict[str, Any]]:
    """Measures all calls, prints their rows as they come, and returns them."""
    table = []
    for name, call in calls:
        for row in measure(call, implementations, batch, dtype, bandwidth):
            table.append({"shape": name, **row})
            print("  ".join(f"{key} {cell}" for key, cell in table[-1].items()), flush=True)
    return table


def tuning_seconds(
    call: shapes.DCNv3 | shapes.MSDeformAttn, batch: int, dtype: Any, **options
) -> dict[Kernel, dict[BlockSize, float]]:
    """Times the GPU kernels of a call with every candidate block size.

    Args:
      call: the sizes of the call.
      batch: the number of images.
      dtype: the type of the values.
      **options: arguments of the operator.

    Returns:
      For every kernel, the time of the pass around it, by block size.
    """
    name, case = CASES[type(call)]
    bind, arguments = case(call, batch, dtype)

    def passes(block_size):
        """Returns the forward pass, the backward pass, and the backward pass without atomics."""
        operator = functools.partial(getattr(gpu, name), block_size=block_size, **options)
        forward, backward = directions(bind(operator), arguments).values()
        in_order = directions(bind(functools.partial(operator, deterministic=True)), arguments)
        return [each[:2] for each in (forward, backward, in_order["backward"])]

    launched, times = set(), {}

    def note(kernel):
        launched.add(kernel)
        return block_sizes.default(kernel)

    for i, (function, given) in enumerate(passes(note)):
        jax.eval_shape(function, *given)
        for kernel in sorted(launched - times.keys()):
            functions = {
                size: passes(functools.partial(_one_changed, kernel, size))[i]
                for size in block_sizes.candidates(kernel)
            }
            times[kernel] = seconds({k: call for k, call in functions.items() if _runs(*call)})
    return times


def _runs(function, arguments):
    """Returns whether the device runs the function; a kernel can ask for too many registers."""
    try:
        jax.block_until_ready(function(*arguments))
    except jax.errors.JaxRuntimeError as error:
        print(f"  skipped: {str(error).splitlines()[0]}", flush=True)
        return False
    return True


def _one_changed(kernel, size, asked):
    return size if asked == kernel else block_sizes.default(asked)


def autotune(
    calls: Sequence[tuple[str, Any]],
    batch: int,
    dtype: Any,
    device_kind: str,
    file: pathlib.Path | None = None,
) -> list[dict[str, Any]]:
    """Finds the fastest block sizes and prints them.

    Args:
      calls: (name, sizes) of each call.
      batch: the number of images.
      dtype: the type of the values.
      device_kind: as jax names it.
      file: where to add the block sizes, if anywhere.

    Returns:
      A row for each kernel.
    """
    times = collections.defaultdict(collections.Counter)
    for name, call in calls:
        print(name, flush=True)
        for kernel, by_size in tuning_seconds(call, batch, dtype).items():
            times[kernel].update(by_size)  # a Counter adds
    rows, fastest = [], block_sizes.fastest(times)
    for kernel, size in fastest.items():
        best, default = (times[kernel][s] for s in (size, block_sizes.default(kernel)))
        print(f"{kernel}: {size}, {default / best:.2f} times as fast as by default")
        rows.append(
            {
                **kernel._asdict(),
                **size._asdict(),
                "milliseconds": round(1e3 * best, 3),
                "milliseconds_by_default": round(1e3 * default, 3),
            }
        )
    if file:
        block_sizes.write(device_kind, fastest, file)
    return rows


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="jaxseg bench kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = ["internimage_t 512x1024 *"]
    parser.add_argument("--shapes", nargs="+", default=default, metavar="PATTERN")
    parser.add_argument("--implementation", action="append", help="default: all for this platform")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--autotune", action="store_true", help="find the GPU's block sizes")
    parser.add_argument("--write", action="store_true", help="keep what --autotune finds")
    parser.add_argument("--json", metavar="FILE", help="also write the table to this file")
    options = parser.parse_args(arguments)
    calls = [
        (name, call)
        for name, call in shapes.every_call()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in options.shapes)
    ]
    if not calls:
        names = "\n".join(name for name, _ in shapes.every_call())
        asked = " ".join(options.shapes)
        sys.exit(f"bench: no shape matches {asked!r}; there are\n{names}")
    try:
        platform = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # JAX_PLATFORMS names what is not here
        sys.exit(f"bench: {str(error) or 'JAX knows no such platform'}; set JAX_PLATFORMS=cpu")
    if options.autotune and platform != "gpu":
        sys.exit(f"bench: --autotune is for the kernels for GPUs, and this is a {platform}")
    device, bandwidth = jax.devices()[0], copy_bandwidth()
    print(f"{device.device_kind}, copying {bandwidth / 1e9:.0f} GB/s, batch {options.batch}")
    if options.autotune:
        # The blocks of self-attention are fixed.
        calls = [x for x in calls if not isinstance(x[1], shapes.SelfAttention)]
        file = block_sizes.FILE if options.write else None
        table = autotune(calls, options.batch, options.dtype, device.device_kind, file)
    else:
        implementations = options.implementation or COMPARED[platform]
        table = compare(calls, implementations, options.batch, options.dtype, bandwidth)
    if options.json:
        result = {
            "device": device.device_kind,
            "copy_gigabytes_per_second": round(bandwidth / 1e9, 1),
            "batch": options.batch,
            "dtype": options.dtype,
            "rows": table,
            "date": datetime.date.today().isoformat(),
            "jax": jax.__version__,
        }
        with open(options.json, "w") as file:
            file.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
