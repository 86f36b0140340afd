"""Memory of a train step with and without rematerialisation, as the compiler states it.

python benchmarks/rematerialisation.py [--config configs/ade20k.py:upernet_beit_adapter_l]
    [--topology v5e:2x2]

Compiles the real train step at the recipe's crop from shapes alone, in bfloat16, with
`model.backbone.remat` on and off, for one image on each chip of a TPU topology (libtpu compiles
without a TPU: pip install 'jaxseg[tpu]'). Prints as JSON what a chip holds: arguments (weights,
moments, images), and what it needs besides while the step runs. Takes half an hour and
15 GB of memory. (XLA's compiler for CPUs orders a step for concurrency and frees nothing that way.)
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import sys

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}

import jax
from jax.experimental import topologies

from jaxseg import ahead_of_time, config_files
from jaxseg.report import versions


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/ade20k.py:upernet_beit_adapter_l")
    parser.add_argument("--topology", default="v5e:2x2")
    options = parser.parse_args()
    devices = topologies.get_topology_desc(options.topology, platform="tpu").devices
    figures = {}
    for name, remat in (("with_rematerialisation", True), ("without_rematerialisation", False)):
        figures[name] = memory_gb(options.config, devices, remat)
        print(name, figures[name], file=sys.stderr, flush=True)
    result = {
        "config": options.config,
        "dtype": "bfloat16",
        "libtpu": importlib.metadata.version("libtpu"),
        "topology": f"{options.topology}, {devices[0].device_kind}",
        **figures,
        "date": datetime.date.today().isoformat(),
        **versions(),
    }
    print(json.dumps(result, indent=1))


def memory_gb(name: str, devices, remat: bool) -> dict[str, float] | str:
    """What a device holds in the compiled step, in 1e9 bytes, or why it does not fit."""
    overrides = ["--config.model.dtype=bfloat16", f"--config.model.backbone.remat={remat}"]
    config = config_files.load(name, overrides)
    traced, _ = ahead_of_time.trace_train_step(config, devices, batch_size=len(devices))
    lowered = traced.lower()
    try:
        memory = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        return str(error).splitlines()[0]
    return {
        "arguments_gb": round(memory.argument_size_in_bytes / 1e9, 2),
        "temporary_gb": round(memory.temp_size_in_bytes / 1e9, 2),
    }


if __name__ == "__main__":
    main()
