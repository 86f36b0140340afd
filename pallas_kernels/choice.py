"""Chooses the implementation of an operator and tests whether its kernel compiles here."""

import dataclasses
import threading
import warnings
from collections.abc import Callable, Hashable, Sequence

import jax
from jax.ad_checkpoint import checkpoint_name

KERNEL_VALUE = "kernel_value"  # the name by which rematerialization may keep values


def name_kernel_value(value: jax.Array) -> jax.Array:
    """Names what an operator computes, or reads in an order of its own.

    A block that is recomputed may keep it.
    """
    return checkpoint_name(value, KERNEL_VALUE)


@dataclasses.dataclass(frozen=True)
class KernelChoice:
    """Says which implementation of the operators a model uses.

    Attributes:
      implementation: "reference", "xla", "gpu", "tpu", or None for the best one on the platform.
      deterministic: the GPU kernels give gradients with the same bits in every run, for more time
        and memory. XLA's own operations need a compiler option in addition.
    """

    implementation: str | None = None
    deterministic: bool = False


def platform() -> str:
    """Returns the platform of the current mesh, or of this machine if no mesh is set.

    The devices of the mesh may be absent from this machine.

    Returns:
      "cpu", "gpu" or "tpu".
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


_REFUSALS: dict[Hashable, str | None] = {}  # by attempt; None: it compiled
_WARNED: set[str] = set()  # operators that a warning was given for


def compiles_here(
    operator: str,
    platform: str,
    settings: Hashable,
    kernel: Callable[..., jax.Array],
    arrays: Sequence[jax.Array],
) -> bool:
    """Returns whether a kernel and its gradients compile for arrays of these shapes and types.

    Each combination of operator, settings, shapes and types is compiled once. The first failure of
    an operator is reported as a warning. If the kernel is for devices that this machine does not
    have, nothing is compiled and the result is True.

    Args:
      operator: the name of the operator, for the warning.
      platform: the platform that the kernel is for.
      settings: everything else that the kernel depends on.
      kernel: a function of `arrays` with one output.
      arrays: arrays or tracers.
    """
    if platform != jax.default_backend():
        return True
    shapes = tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays)
    tried = (platform, operator, settings, shapes)
    if tried not in _REFUSALS:
        reason = _REFUSALS[tried] = _refusal(kernel, shapes)
        if reason and operator not in _WARNED:
            _WARNED.add(operator)
            _warn(operator, platform, reason)
    return _REFUSALS[tried] is None


def refusals() -> dict[str, str]:
    """Returns the operators whose kernels have failed to compile here, with the reasons."""
    return {operator: reason for (_, operator, *_), reason in _REFUSALS.items() if reason}


def _refusal(kernel, shapes) -> str | None:
    """Returns the compiler's complaint about a kernel in one line, or None if it compiles."""

    def with_gradients(*arrays):
        output, transpose = jax.vjp(kernel, *arrays)
        return output, transpose(output)

    found = []

    def attempt():
        try:
            jax.jit(with_gradients).lower(*shapes).compile()
        except Exception as error:  # compilers raise exceptions of any type
            lines = str(error).strip().splitlines() or [""]
            if "RESOURCE_EXHAUSTED" not in lines[0]:  # of this attempt, not of the model
                found.append(f"{type(error).__name__}: {lines[0]}")

    # Use a separate thread: the mesh and the trace around this call belong to the calling thread.
    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return found[0] if found else None


def _warn(operator, platform, reason):
    warnings.warn(
        f"{operator}: the {platform} kernel does not compile here ({reason}). XLA's implementation"
        " takes its place and is slower. Set config.model.kernels=xla or JAXSEG_KERNELS=xla to"
        " choose it yourself, without this warning.",
        stacklevel=3,
    )
