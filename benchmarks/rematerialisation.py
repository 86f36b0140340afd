"""Memory of a train step with and without rematerialisation, as the compiler states it.

python benchmarks/rematerialisation.py [--config configs/ade20k.py:upernet_beit_adapter_l]

Compiles the real train step of one image at the recipe's crop from shapes alone, with
`model.backbone.remat` on and off, and prints as JSON what the compiled program holds: its arguments
(weights, moments, images), and what it needs besides while it runs.
"""

import argparse
import datetime
import json
import os
import platform

import jax
import numpy as np

from jaxseg import config_files, optim, train_step
from jaxseg.models import segmentor
from jaxseg.report import versions


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/ade20k.py:upernet_beit_adapter_l")
    config = parser.parse_args().config
    memory = {
        name: memory_gb(config, remat) for name, remat in (("with", True), ("without", False))
    }
    device = jax.devices()[0]
    result = {
        "config": config,
        "dtype": str(config_files.load(config).model.dtype),
        **{f"{name}_rematerialisation": figures for name, figures in memory.items()},
        "compiled_for": f"{device.platform} ({device.device_kind}, {os.cpu_count()} cores)",
        "machine": platform.machine(),
        "date": datetime.date.today().isoformat(),
        **versions(),
    }
    print(json.dumps(result, indent=1))


def memory_gb(name: str, remat: bool) -> dict[str, float]:
    """Arguments and temporary memory of the compiled step of one image, in 1e9 bytes."""
    config = config_files.load(name, [f"--config.model.backbone.remat={remat}"])
    model = segmentor.build(config.model)
    optimizer = optim.make(config.optim, config.model.backbone, config.steps)
    state = jax.eval_shape(lambda: train_step.init_state(config, model, optimizer))
    hw = tuple(config.data.crop_hw)
    batch = {
        "image": jax.ShapeDtypeStruct((1, *hw, 3), np.float32),
        "label": jax.ShapeDtypeStruct((1, *hw), np.int32),
    }
    step = jax.jit(train_step.make_train_step(config, model, optimizer), donate_argnums=0)
    memory = step.lower(state, batch).compile().memory_analysis()
    return {
        "arguments_gb": round(memory.argument_size_in_bytes / 1e9, 2),
        "temporary_gb": round(memory.temp_size_in_bytes / 1e9, 2),
    }


if __name__ == "__main__":
    main()
