"""Selects the variables that stay freshly initialized when a model starts from other weights.

Both models must have the same backbone. A head may be missing, be of another kind, or have another
number of classes. The variables that do not fit are then trained from scratch.
"""

from collections.abc import Mapping

Shape = tuple[int, ...]

HEADS = ("decode_head", "auxiliary_head")
CLASSIFIERS = ("conv_seg", "cls_embed")  # of the other heads, and of Mask2Former


def head_name(path: str) -> str | None:
    """Returns the name of the head that a variable belongs to, or None.

    Args:
      path: the path of the variable, such as "params/decode_head/…".
    """
    part = path.split("/")[1]
    return part if part in HEADS else None


def fresh_variables(available: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> dict[str, str]:
    """Finds the variables of a model that stay fresh because the available weights do not fit.

    Only whole heads and their classifiers are left fresh. The caller must reject every other
    mismatch.

    Args:
      available: the shapes of the available variables. Their paths look like
        "params/decode_head/…" and "batch_stats/…".
      wanted: the shapes of the model's variables, by the same kind of path.

    Returns:
      The paths of `wanted` that `available` cannot supply, each with the reason.
    """
    fresh = {}
    for head in HEADS:
        mine = {path: shape for path, shape in wanted.items() if head_name(path) == head}
        theirs = {path: shape for path, shape in available.items() if head_name(path) == head}
        different = {path for path, shape in mine.items() if theirs.get(path) != shape}
        if not theirs:
            fresh |= dict.fromkeys(mine, f"there is no {head}")
        elif all(path.split("/")[-2] in CLASSIFIERS for path in different):
            fresh |= dict.fromkeys(different, "another number of classes")
        else:
            fresh |= dict.fromkeys(mine, f"the {head} is of another kind or size")
    return fresh
