"""Semantic segmentation in JAX: InternImage and ViT-Adapter with UperNet and Mask2Former."""

import os

# XLA:CPU begins whatever it can, and so it has the position biases of all layers of BEiT in memory
# at once, where one at a time would do (tests/programs/test_predict.py). Read when jax starts its
# devices; a flag of the user's own comes later and wins.
IN_SEQUENCE = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
os.environ["XLA_FLAGS"] = f"{IN_SEQUENCE} {os.environ.get('XLA_FLAGS', '')}"


def list_models(pattern: str = "*") -> list[str]:
    """Names of the published models that match a shell pattern, such as "*cityscapes*"."""
    from jaxseg.zoo import catalogue  # only here: importing jaxseg imports nothing else

    return catalogue.list_models(pattern)
