"""Which variables keep their fresh values when a model starts from the weights of another.

The backbone has to be the same. A head may be missing, be of another kind, or have another number
of classes; what does not fit is then trained from scratch.
"""

from collections.abc import Mapping

Shape = tuple[int, ...]

HEADS = ("decode_head", "auxiliary_head")
CLASSIFIER = "conv_seg"


def head_name(path: str) -> str | None:
    """The head that a variable belongs to, or None."""
    part = path.split("/")[1]
    return part if part in HEADS else None


def fresh_variables(available: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> dict[str, str]:
    """The paths of `wanted` that `available` cannot give, each with the reason.

    Paths are "params/decode_head/…", "batch_stats/…". Only whole heads and their classifiers are
    ever left fresh; whatever else does not fit is for the caller to refuse.
    """
    fresh = {}
    for head in HEADS:
        mine = {path: shape for path, shape in wanted.items() if head_name(path) == head}
        theirs = {path: shape for path, shape in available.items() if head_name(path) == head}
        different = {path for path, shape in mine.items() if theirs.get(path) != shape}
        if not theirs:
            fresh |= dict.fromkeys(mine, f"there is no {head}")
        elif all(f"/{CLASSIFIER}/" in path for path in different):
            fresh |= dict.fromkeys(different, "another number of classes")
        else:
            fresh |= dict.fromkeys(mine, f"the {head} is of another kind or size")
    return fresh
