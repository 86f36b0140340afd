"""Compiles operators and their gradients for an H100 that is not here.

    python traffic_of_gpu.py

Prints JSON: for each operator, the bytes that its program moves, and those of them that copies and
transposes move, in passes over a map of the operator's result.
"""

import json

import jax
import jax.numpy as jnp

from jaxseg.aot.programs import compile_traced, topology_devices
from jaxseg.distributed.sharding import make_mesh
from jaxseg.ops.convolution import conv3x3_of_resized, depthwise_conv
from jaxseg.ops.normalization import layer_norm
from jaxseg.ops.resize import resize_bilinear

HW = 32, 32
SMALL, LARGE = (2, 16, 16, 256), (2, *HW, 256)
OPERATORS = {
    "resize": (lambda x: resize_bilinear(x, HW), SMALL),
    "resized_convolution": (
        lambda x, kernel: conv3x3_of_resized(x, kernel, HW),
        *(SMALL, (3, 3, 256, 256)),
    ),
    "depthwise_convolution": (depthwise_conv, LARGE, (3, 3, 1, 256)),
    "layer_norm": (
        lambda x, scale, bias: layer_norm(x, scale, bias, 1e-6, jnp.bfloat16),
        *(LARGE, (256,), (256,)),
    ),
}


def traffic(operator, shapes):
    """Returns the bytes of an operator and its gradients, and those of copies, in passes."""
    _, devices = topology_devices("h100:1")
    mesh = make_mesh({"data": -1, "fsdp": 1}, devices)

    def with_gradients(cotangent, *arguments):
        result, transpose = jax.vjp(operator, *arguments)
        return result, transpose(cotangent)

    replicated = jax.NamedSharding(mesh, jax.P())
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=replicated) for shape in (LARGE, *shapes)
    ]
    with jax.set_mesh(mesh):
        traced = jax.jit(with_gradients).trace(*arguments)
    costs = compile_traced(traced, 1, "h100").instructions
    copied = [cost.bytes for cost in costs if cost.kind == "copies and transposes"]
    one_pass = 2 * HW[0] * HW[1] * 256 * 2
    return sum(cost.bytes for cost in costs) / one_pass, sum(copied) / one_pass


if __name__ == "__main__":
    print(json.dumps({name: traffic(run, shapes) for name, (run, *shapes) in OPERATORS.items()}))
