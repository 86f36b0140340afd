"""Compiles DCNv3 for a TPU that is not there, with the compiler of libtpu:

python compile_for_tpu.py TOPOLOGY DTYPE N,H,W,GROUPS,CHANNELS_PER_GROUP ...

Prints one line of JSON a shape."""

import json
import os
import sys
import time

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from pallas_kernels.tpu.dcnv3 import dcnv3

GEOMETRY = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1, "offset_scale": 1.0}


def compile_shape(device, dtype, n, height, width, groups, channels):
    """Seconds and megabytes of the operator, and of the operator with its gradients."""
    where = jax.sharding.SingleDeviceSharding(device)

    def array(channels, dtype):
        return jax.ShapeDtypeStruct((n, height, width, channels), dtype, sharding=where)

    def sample(value, offset, mask):
        return dcnv3(value, offset, mask, groups=groups, **GEOMETRY)

    def with_gradients(*inputs):
        output, transpose = jax.vjp(sample, *inputs)
        return output, transpose(output)

    inputs = [array(groups * channels, dtype), array(groups * 18, jnp.float32)]
    inputs.append(array(groups * 9, jnp.float32))
    report = {"shape": [n, height, width, groups, channels], "dtype": dtype}
    for name, function in {"forward": sample, "backward": with_gradients}.items():
        start = time.time()
        compiled = jax.jit(function).lower(*inputs).compile()
        memory = compiled.memory_analysis()
        report[name] = {
            "seconds": round(time.time() - start, 1),
            "temporary_mb": round(memory.temp_size_in_bytes / 1e6, 1),
            "accessed_mb": round(compiled.cost_analysis()["bytes accessed"] / 1e6, 1),
        }
    return report


def main(topology, dtype, *shapes):
    device = topologies.get_topology_desc(topology, platform="tpu").devices[0]
    for shape in shapes:
        report = compile_shape(device, dtype, *map(int, shape.split(",")))
        print(json.dumps({"topology": topology, **report}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
