"""One recorded module beside its like here: values, gradients, batch statistics."""

import jax
import jax.numpy as jnp
import numpy as np

from converters import rules
from jaxseg import parameter_paths
from support.reference_files import relative_error

# Float32 rounding of sums in another order; the originals differ as much from their own float64.
VALUES, GRADIENTS = 1e-5, 1e-4


def last(x):
    return jnp.moveaxis(x, 1, -1)


def first(x):
    return jnp.moveaxis(x, -1, 1)


def check_module(recording, compute, rename=str, cancelled=()):
    """`compute` is given the metadata, a function that applies a module, and the inputs.

    `rename` takes the recorded names of parameters to those that `converters.rules` knows.
    Gradients of what is `cancelled` by a norm that follows are differences of large numbers: their
    errors are compared with the largest gradient of all.
    """
    meta = recording.json("meta")
    named = {rename(name): value for name, value in recording.params().items()}
    variables = {"batch_stats": {}} | rules.to_variables(named)
    cotangents = recording.group("cotangents/")

    def scalar(params, inputs):
        statistics = {}

        def run(module, *arguments):
            output, updated = module.apply(
                {"params": params, "batch_stats": variables["batch_stats"]},
                *arguments,
                mutable=["batch_stats"],
            )
            statistics.update(updated)
            return output

        outputs = compute(meta, run, inputs)
        total = sum(jnp.sum(outputs[name] * value) for name, value in cotangents.items())
        return total, (outputs, statistics)

    gradient = jax.jit(jax.grad(scalar, argnums=(0, 1), has_aux=True))
    inputs = recording.group("inputs/")
    (of_params, of_inputs), (outputs, statistics) = gradient(variables["params"], inputs)
    for name, expected in recording.group("outputs/").items():
        assert relative_error(outputs[name], expected) < VALUES, name
    largest = max(np.max(np.abs(x), initial=0) for x in recording.group("grads/").values())

    def check_gradient(found, expected, name):
        share = np.max(np.abs(expected)) / largest if name in cancelled else 1.0
        assert share * relative_error(found, expected) < GRADIENTS, name

    for name, expected in recording.group("grads/inputs/").items():
        check_gradient(of_inputs[name], expected, name)
    of_params = parameter_paths.by_path({"params": of_params})
    for name, expected in recording.group("grads/params/").items():
        path = rules.to_path(rename(name), expected.ndim)
        expected = rules.to_channels_last(expected, path)
        check_gradient(of_params[path], expected, name)
    statistics = parameter_paths.by_path(statistics)
    for name, expected in recording.group("updated/").items():
        if not name.endswith(rules.COUNTER):
            path = rules.to_path(rename(name), 1)
            assert relative_error(statistics[path], expected) < VALUES, name
