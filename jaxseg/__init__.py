"""Semantic segmentation in JAX: InternImage and ViT-Adapter, in every published size."""

import importlib
import os
import typing

if typing.TYPE_CHECKING:
    from jaxseg.config import load_config
    from jaxseg.errors import JaxsegError
    from jaxseg.segmenter import Segmenter
    from jaxseg.zoo.catalogue import list_models

    __version__: str

__all__ = ["JaxsegError", "Segmenter", "configure_cpu", "list_models", "load_config"]

# Imported when they are first asked for, so that importing jaxseg takes no time.
_HOMES = {
    "JaxsegError": "jaxseg.errors",
    "Segmenter": "jaxseg.segmenter",
    "list_models": "jaxseg.zoo.catalogue",
    "load_config": "jaxseg.config",
}


def __getattr__(name: str):
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("jaxseg")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jaxseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "__version__", *_HOMES])


def configure_cpu():
    """Makes XLA's CPU backend hold less memory; to be called before JAX starts its devices.

    By default XLA:CPU begins every operation as soon as it can. Of a model with BEiT, it then holds
    the position biases of all layers at once, where one at a time would do. This selects its
    sequential scheduler. The programs of jaxseg call it; a flag of the user's own comes later in
    `XLA_FLAGS` and wins.
    """
    sequential = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    os.environ["XLA_FLAGS"] = f"{sequential} {os.environ.get('XLA_FLAGS', '')}"
