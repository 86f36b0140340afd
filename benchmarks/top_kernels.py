"""Finds the kernels that take most of the time of train steps on the devices of this machine.

    python benchmarks/top_kernels.py --config configs/cityscapes.py:upernet_internimage_t \\
        --batch 8 [--steps 10] [--top 30] [--json FILE] [--config.KEY=VALUE …]

The program traces the steps of `jaxseg bench train` with JAX's profiler. It adds up the times of
everything that ran on the first device, by name. On CPU, it adds up XLA's operations on all
threads.
"""

import argparse
import collections
import datetime
import json
import pathlib
import sys
import tempfile

import jax

from jaxseg.bench.program import compile_program
from jaxseg.config import load_config
from jaxseg.distributed.sharding import check_batch, make_mesh
from jaxseg.reporting.manifest import versions

WARM_UP = 3


def kernel_seconds(trace: pathlib.Path) -> collections.Counter:
    """Returns seconds by the name of a kernel, for the first device in a trace."""
    (file,) = trace.rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    on_device = sorted(
        (p for p in planes if p.name.startswith("/device:") and list(p.lines)), key=lambda p: p.name
    )
    seconds = collections.Counter()
    if on_device:
        # GPUs have a line for each stream. A TPU has its operations in the line "XLA Ops"; the
        # other lines are what these operations belong to.
        lines = list(on_device[0].lines)
        chosen = [line for line in lines if line.name.startswith("Stream")]
        chosen = chosen or [line for line in lines if line.name == "XLA Ops"]
        for line in chosen:
            for event in line.events:
                # A loop on a TPU is an additional event around the events of its body.
                if not event.name.startswith("%while"):
                    seconds[event.name] += event.duration_ns / 1e9
    else:
        for plane in planes:
            for line in plane.lines:
                if line.name.startswith("tf_XLA"):
                    for event in line.events:
                        seconds[event.name] += event.duration_ns / 1e9
    return seconds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE:VARIANT")
    parser.add_argument("--batch", type=int, default=8, help="images per device")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--top", type=int, default=30)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    options, overrides = parser.parse_known_args()
    config = load_config(options.config, overrides)
    mesh = make_mesh(config.mesh)
    config.batch_size = options.batch * mesh.size
    check_batch(config.batch_size, config.optim.accumulation, mesh)
    program = compile_program(config, "train", mesh)
    for _ in range(WARM_UP):
        program.run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(options.steps):
                program.run()
        seconds = kernel_seconds(pathlib.Path(folder))
    total = sum(seconds.values())
    if not total:
        sys.exit("top_kernels: the trace has no kernels of a known device")
    rows = [
        {
            "kernel": name,
            "milliseconds_per_step": round(1e3 * taken / options.steps, 4),
            "share": round(taken / total, 4),
        }
        for name, taken in seconds.most_common(options.top)
    ]
    for row in rows:
        print(f"{row['milliseconds_per_step']:>10.3f} ms {row['share']:>6.1%}  {row['kernel']}")
    result = {
        "config": config.variant,
        "overrides": overrides,
        "batch": program.batch_shape[0],
        "device": jax.devices()[0].device_kind,
        "milliseconds_per_step": round(1e3 * total / options.steps, 3),
        "rows": rows,
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
