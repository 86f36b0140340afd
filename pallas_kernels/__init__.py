"""Deformable sampling for JAX: one public function an operator, one file an implementation.

Nothing here needs a compiler on the user's side. `reference` holds the definition; the other
implementations are optimisations with the same values and gradients for any offset.
"""

from jaxtyping import Array, Float

from pallas_kernels import reference, xla

IMPLEMENTATIONS = {"reference": reference, "xla": xla}


def dcnv3(
    value: Float[Array, "n h w gc"],
    offset: Float[Array, "n p q gk2"],
    mask: Float[Array, "n p q gk"],
    *,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    offset_scale: float,
    implementation: str | None = None,
) -> Float[Array, "n p q gc"]:
    """The core of DCNv3 (`reference.dcnv3` is the definition), channels last.

    Args:
      value: projected input, `groups` × channels per group along the last axis.
      offset: (x, y) pairs in pixels, laid out [groups, kernel_size², 2] along the last axis.
      mask: sampling weights, [groups, kernel_size²]; already normalised where the model wants it.
      implementation: "xla", "reference", or None for the best on this platform.

    Raises:
      ValueError: for shapes that do not belong together, or an unknown implementation.
    """
    points = kernel_size**2
    n, height, width, channels = value.shape
    reach = dilation * (kernel_size - 1) + 1
    out_h, out_w = ((size + 2 * padding - reach) // stride + 1 for size in (height, width))
    if channels % groups:
        raise ValueError(f"dcnv3: {channels} channels of value {value.shape} in {groups} groups")
    if offset.shape != (n, out_h, out_w, groups * points * 2):
        raise ValueError(
            f"dcnv3: offset {offset.shape}, expected {(n, out_h, out_w, groups * points * 2)}"
            f" for value {value.shape}"
        )
    if mask.shape != (n, out_h, out_w, groups * points):
        raise ValueError(f"dcnv3: mask {mask.shape}, expected {(n, out_h, out_w, groups * points)}")
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"dcnv3: no implementation {implementation!r}; {list(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[implementation or "xla"].dcnv3(
        value,
        offset,
        mask,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        offset_scale=offset_scale,
    )
