"""Which implementation of an operator runs, and whether its kernel compiles on the devices here."""

import dataclasses
import threading
import warnings
from collections.abc import Callable, Hashable, Sequence

import jax


@dataclasses.dataclass(frozen=True)
class KernelChoice:
    """What a model asks of `pallas_kernels.dcnv3` and `pallas_kernels.ms_deform_attn`.

    Attributes:
      implementation: "reference", "xla", "gpu", "tpu", or None for the best one on the platform.
      deterministic: the GPU kernels give gradients with the same bits in every run, for more time
        and memory. XLA's own operations need its compiler's option besides.
    """

    implementation: str | None = None
    deterministic: bool = False


def platform() -> str:
    """The platform of the mesh that is set (whose devices may be absent), or else of this machine.

    Returns:
      "cpu", "gpu" or "tpu".
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


_REFUSALS: dict[Hashable, str | None] = {}  # by what was tried
_WARNED: set[str] = set()  # operators


def compiles_here(
    operator: str,
    platform: str,
    settings: Hashable,
    kernel: Callable[..., jax.Array],
    arrays: Sequence[jax.Array],
) -> bool:
    """Whether the kernel and its gradients compile for arrays of these shapes and types.

    It is tried once for every operator, settings, shapes and types. The first failure of an
    operator is reported in a warning. Nothing is tried, and the result is True, where the kernel is
    for devices that this machine does not have.

    Args:
      operator: the name of the operator, for the warning.
      platform: the platform that the kernel is for.
      settings: what else the kernel depends on.
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
    """The operators whose kernels did not compile here so far, and why."""
    return {operator: reason for (_, operator, *_), reason in _REFUSALS.items() if reason}


def _refusal(kernel, shapes) -> str | None:
    """What the compiler says against the kernel, in a line; None where it compiles."""

    def with_gradients(*arrays):
        output, transpose = jax.vjp(kernel, *arrays)
        return output, transpose(output)

    found = []

    def attempt():
        try:
            jax.jit(with_gradients).lower(*shapes).compile()
        except Exception as error:  # compilers raise what they like
            lines = str(error).strip().splitlines() or [""]
            if "RESOURCE_EXHAUSTED" not in lines[0]:  # of this trial, not of the model
                found.append(f"{type(error).__name__}: {lines[0]}")

    # In a thread of its own: the mesh and the trace around this call are those of its own thread.
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
