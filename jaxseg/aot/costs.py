"""Estimates what a compiled program costs on a chip, and suggests settings that help it fit."""

import collections
import math
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg.aot.hardware import Chip
from jaxseg.aot.profile_summary import summarize
from jaxseg.aot.programs import Program

WORTH_SPLITTING = 1e8  # bytes of weights and moments on one device


def costs(program: Program, chip: Chip, model_flops: float, devices: int) -> dict[str, Any]:
    """Returns what one run of the program needs on each device, with an estimate of its time.

    Args:
      program: the compiled program.
      chip: the chip it runs on.
      model_flops: the model's own operations for the whole batch (`utilization.model_flops`). They
        replace XLA's count where that is missing.
      devices: the number of devices.

    Returns:
      Operations, bytes of memory traffic, and collectives by kind. "data_sheet" is the time at the
      rates of the chip's data sheet, one after the other. "by_instruction" is the sum over
      instructions, with collectives at the rates of the data sheet; its "source" is "compiler"
      for the TPU compiler's own estimates, and "roofline" for the bound of each instruction on a
      GPU. Its "mfu" is the share of the chip's peak that the model's own operations use.
    """
    kinds = collections.defaultdict(lambda: {"count": 0, "bytes": 0.0})
    for collective in program.collectives:
        kinds[collective.kind]["count"] += collective.times
        kinds[collective.kind]["bytes"] += collective.sent_bytes
    sent = {kind: total["bytes"] for kind, total in kinds.items()}
    over_network = sent.pop("send", 0.0)
    seconds = {
        "arithmetic": (program.flops or model_flops / devices) / chip.flops,
        "memory": program.memory_traffic_bytes / chip.memory_bandwidth,
        "links": sum(sent.values()) / chip.link_bandwidth,
        "network": over_network / chip.network_bandwidth,
    }
    own_flops = model_flops / devices
    found = {
        "flops": program.flops,
        "model_flops": own_flops,
        "memory_traffic": program.memory_traffic_bytes,
        "collectives": dict(kinds),
        "data_sheet": {"seconds": seconds, "step_seconds": sum(seconds.values())},
        "compile_seconds": program.compile_seconds,
    }
    summary = summarize(program.instructions)
    if summary["seconds"]:
        step = summary["seconds"] + seconds["links"] + seconds["network"]
        source = {"source": "compiler" if chip.platform == "tpu" else "roofline"}
        estimate = {"step_seconds": step, "mfu": own_flops / step / chip.flops}
        found["by_instruction"] = source | summary | estimate
    return found


def suggestions(config: ConfigDict, mesh: Mesh, state: Any, images: int, what: str) -> list[str]:
    """Returns settings that would make the program smaller, the most harmless first.

    Args:
      config: the recipe.
      mesh: the device mesh.
      state: abstract arrays with shardings that the program holds.
      images: the number of images in a batch.
      what: "train" or "eval".
    """
    leaves = jax.tree.leaves(state)
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    found = []
    if mesh.shape["fsdp"] < mesh.size and held > WORTH_SPLITTING:
        found.append(
            f"--config.mesh.data=1 --config.mesh.fsdp={mesh.size} shards the {held / 1e9:.1f} GB of"
            " weights and moments that every device holds"
        )
    if what == "eval":
        if config.eval.images_per_device > 1:
            found.append("--config.eval.images_per_device=1")
        return [*found, "--config.eval.mode=slide with a smaller --config.eval.crop_hw"]
    if not config.model.backbone.get("remat", True):
        found.append("--config.model.backbone.remat=True keeps few activations within blocks")
    per_device = images // mesh.size
    if per_device > config.optim.accumulation:
        found.append(
            f"--config.optim.accumulation, up to {per_device}: fewer images at a time; batch norm"
            " then takes its statistics over these alone"
        )
    elif per_device > 1:
        found.append(
            f"more devices, or a smaller --config.batch_size (a device has {per_device} images)"
        )
    return [*found, f"a smaller --config.data.crop_hw than {tuple(config.data.crop_hw)}"]
