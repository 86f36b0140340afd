"""What a whole train step needs on every chip of a TPU slice, as the compiler states it.

pip install 'jaxseg[tpu]'      # its compiler needs no TPU
python benchmarks/tpu_train_step.py --config configs/cityscapes.py:upernet_internimage_t
    [--topology v5e:4x4] [--batch 16] [--sampling kernels] [--json FILE] [--config.KEY=VALUE …]

Compiles the step at the recipe's crop from shapes alone, in bfloat16, and prints the gigabytes of a
chip: arguments (weights, moments, images), and what it needs besides while the step runs; and how
many collectives and copies the program has. `--sampling xla` takes no kernels, for comparison. With
--json the result joins those in the file. Takes a quarter of an hour and up to 15 GB of memory.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import re
import time
from collections import Counter
from pathlib import Path

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}

import jax
from jax.experimental import topologies

import pallas_kernels
from jaxseg import ahead_of_time, config_files, parallel
from jaxseg.report import versions

SAME = ("config", "overrides", "topology", "batch", "sampling")  # of a result that is made anew
COUNTED = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "copy")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--batch", type=int, help="of all chips; default: one image each")
    parser.add_argument("--sampling", choices=("kernels", "xla"), default="kernels")
    parser.add_argument("--json", metavar="FILE", type=Path)
    options, overrides = parser.parse_known_args()
    devices = topologies.get_topology_desc(options.topology, platform="tpu").devices
    if options.sampling == "xla":
        pallas_kernels.KERNEL_TYPES = ()
    batch = options.batch or len(devices)
    result = {
        "config": options.config,
        "overrides": overrides,
        "topology": options.topology,
        "batch": batch,
        "sampling": options.sampling,
        **compile_step(options.config, overrides, devices, batch),
        "libtpu": importlib.metadata.version("libtpu"),
        "date": datetime.date.today().isoformat(),
        **versions(),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        results = json.loads(options.json.read_text()) if options.json.exists() else []
        others = [row for row in results if any(row[key] != result[key] for key in SAME)]
        options.json.write_text(json.dumps([*others, result], indent=1) + "\n")


def compile_step(name: str, overrides: list[str], devices, batch: int) -> dict:
    """What a device holds in the compiled step, in 1e9 bytes, or why it does not fit."""
    config = config_files.load(name, ["--config.model.dtype=bfloat16", *overrides])
    config.batch_size = batch
    traced, *_ = ahead_of_time.trace_train_step(config, parallel.make_mesh(config.mesh, devices))
    lowered = traced.lower()
    begun = time.time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return {"error": str(error).splitlines()[0]}
    memory = compiled.memory_analysis()
    operations = Counter(re.findall(r" ([a-z-]+?)(?:-start)?\(", compiled.as_text()))
    return {
        "arguments_gb": round(memory.argument_size_in_bytes / 1e9, 2),
        "temporary_gb": round(memory.temp_size_in_bytes / 1e9, 2),
        "program_gb": round(memory.generated_code_size_in_bytes / 1e9, 2),
        "operations": {name: operations[name] for name in COUNTED},
        "compile_minutes": round((time.time() - begun) / 60, 1),
    }


if __name__ == "__main__":
    main()
