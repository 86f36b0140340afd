"""Runs frozen parts of a model as in evaluation, while the other parts train."""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn

from jaxseg.parameter_paths import begins_with


def frozen_parts(patterns: Sequence[str]) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which frozen modules get `train=False`.

    Their batch norm then uses the running statistics and leaves them alone, and they drop nothing.

    Args:
      patterns: a module is frozen if one of these regular expressions matches the beginning of its
        path, such as "backbone/blocks_3/".
    """
    return nn.intercept_methods(_in_evaluation(patterns)) if patterns else contextlib.nullcontext()


def _in_evaluation(patterns):
    def interceptor(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext):
        module = context.module
        if context.method_name != "__call__" or not begins_with(_path(module), patterns):
            return call(*args, **kwargs)
        signature = inspect.signature(type(module).__call__)
        if "train" not in signature.parameters:
            return call(*args, **kwargs)
        bound = signature.bind(module, *args, **kwargs)
        bound.arguments["train"] = False
        return call(*bound.args[1:], **bound.kwargs)

    return interceptor


def _path(module):
    return "".join(f"{name}/" for name in module.path)
