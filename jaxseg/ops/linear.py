"""Matrix products whose gradients are written by hand, and the GELU of PyTorch."""

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def matmul(x: Float[Array, "... c"], kernel: Float[Array, "c d"]) -> Float[Array, "... d"]:
    """x @ kernel, whose gradients take their operands as they lie in memory.

    Left to itself, XLA:CPU fuses what comes before a weight gradient with the transposition that
    the gradient needs, and walks through all of it against the grain: half the time of a backward
    pass.
    """
    return x @ kernel


def _matmul_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _matmul_backward(residuals, cotangent):
    x, kernel = residuals
    x, cotangent = lax.platform_dependent(
        *(x, cotangent),
        cpu=lambda *pair: lax.optimization_barrier(pair),
        default=lambda *pair: pair,
    )
    rows, columns = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
    return cotangent @ kernel.T, rows.T @ columns


matmul.defvjp(_matmul_forward, _matmul_backward)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU. By erf, which is four times faster on CPU than the erfc that jax.nn takes."""
    return 0.5 * x * (1 + lax.erf(x * np.asarray(0.5**0.5, x.dtype)))
