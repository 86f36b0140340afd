"""Semantic segmentation in JAX: InternImage with UperNet and SegFormer heads."""


def list_models(pattern: str = "*") -> list[str]:
    """Names of the published models that match a shell pattern, such as "*cityscapes*"."""
    from jaxseg import zoo  # only here: importing jaxseg imports nothing else

    return zoo.list_models(pattern)
