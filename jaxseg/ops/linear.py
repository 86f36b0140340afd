"""Matrix products with hand-written gradients, and PyTorch's GELU."""

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def matmul(x: Float[Array, "... c"], kernel: Float[Array, "c d"]) -> Float[Array, "... d"]:
    """Computes x @ kernel, with gradients in the form that suits the platform.

    By default, XLA:CPU fuses the operations before a weight gradient with the transpose that the
    gradient needs. It then reads all their operands against the memory order, which takes half the
    time of a backward pass. On CPU, the gradients therefore read their operands in memory order.
    Elsewhere, the weight gradient sums over the leading axes as they are. On a TPU, joining them to
    one axis would copy a map that has its columns in the lanes.
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

    def of_joined_axes(x, cotangent):
        rows, columns = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
        return rows.T @ columns

    def of_all_axes(x, cotangent):
        leading = tuple(range(x.ndim - 1))
        return lax.dot_general(x, cotangent, ((leading, leading), ((), ())))

    kernel_gradient = lax.platform_dependent(
        *(x, cotangent), cpu=of_joined_axes, default=of_all_axes
    )
    return cotangent @ kernel.T, kernel_gradient


matmul.defvjp(_matmul_forward, _matmul_backward)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes the exact GELU.

    It uses erf, which is four times faster on CPU than the erfc of `jax.nn.gelu`.
    """
    return 0.5 * x * (1 + lax.erf(x * np.asarray(0.5**0.5, x.dtype)))
