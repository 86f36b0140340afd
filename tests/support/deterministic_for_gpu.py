"""Compiles a train step of Mask2Former for an H100 that is not here; what could change its bits.

    python deterministic_for_gpu.py true|false

Prints JSON: the kernels of deformable sampling, whether there are atomics, the scatters whose
targets may coincide, and the steps of the longest loop. A scatter that XLA made deterministic by a
loop over its updates would have a step for each of them.
"""

import json
import re
import sys

from jaxseg.aot.programs import COMPILER_OPTIONS, topology_devices, trace_train_step
from jaxseg.config import load_config
from jaxseg.distributed.sharding import make_mesh

RECIPE = "benchmarks/tiny_recipes.py:coco_stuff164k.mask2former_beit_adapter_l"


def main(deterministic):
    overrides = ["--config.batch_size=2", f"--config.deterministic={deterministic}"]
    config = load_config(RECIPE, overrides)
    _, devices = topology_devices("h100:1")
    mesh = make_mesh(config.mesh, devices)
    traced, _, _ = trace_train_step(config, mesh)
    text = traced.lower().compile(COMPILER_OPTIONS["cuda"]).as_text()
    scatters = [line for line in text.splitlines() if re.search(r" scatter\(", line)]
    report = {
        "kernels": text.count("__gpu$xla.gpu.triton"),
        "atomics": "atomic" in text,
        "scatters": sum("unique_indices=true" not in line for line in scatters),
        "longest_loop": max(map(int, re.findall(r'"known_trip_count":\{"n":"(\d+)"', text))),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
