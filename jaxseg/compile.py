"""Reports memory and estimated step time on devices that may be absent (`--mode compile`)."""

import json
import math
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxseg.aot.costs import costs, suggestions
from jaxseg.aot.icicle import draw_icicle
from jaxseg.aot.profile_summary import format_kinds, format_summary
from jaxseg.aot.programs import compile_traced, topology_devices, trace_evaluation, trace_train_step
from jaxseg.aot.utilization import model_flops
from jaxseg.atomic_files import write_text
from jaxseg.distributed.sharding import check_batch, make_mesh
from jaxseg.inference.image_sizes import check_image_sizes
from jaxseg.models import kernels
from jaxseg.reporting.manifest import versions
from jaxseg.workdir import WorkDirectory


def compile_report(config: ConfigDict, topology: str, slices: int, what: str) -> dict[str, Any]:
    """Compiles the train step or the evaluation for a topology and reports its needs per device.

    There are two estimates of the time. One follows the chip's data sheet. Arithmetic runs at its
    peak, memory traffic at the memory bandwidth, and collectives at the bandwidth of a device's
    links. These parts are added up. Traffic between GPU nodes also counts at the bandwidth of the
    links. XLA's counts leave out the work inside the Pallas kernels. The other estimate is the sum
    over all instructions (`jaxseg.aot.step_profile`).

    Args:
      config: the recipe. A model dtype of "auto" means bfloat16, as on accelerators.
      topology: CHIP:SHAPE, such as v5e:4x4.
      slices: the number of TPU slices of this topology, or the number of GPU nodes.
      what: "train" or "eval".

    Returns:
      The report, with memory in bytes and times in seconds.

    Raises:
      ConfigError: for a topology that does not exist or whose compiler is not installed, and for a
        config whose sizes, kernels, mesh or batch do not suit the devices.
    """
    config = config.copy_and_resolve_references()
    if config.model.dtype == "auto":
        config.model.dtype = "bfloat16"
    check_image_sizes(config)
    chip, devices = topology_devices(topology, slices)
    kernels.check_kernels(config.model, chip.platform)
    mesh = make_mesh(config.mesh, devices)
    if what == "train":
        check_batch(config.batch_size, config.optim.accumulation, mesh)
    trace = {"train": trace_train_step, "eval": trace_evaluation}
    traced, state, images = trace[what](config, mesh)
    program = compile_traced(traced, mesh.size // slices, topology.partition(":")[0])
    # The TPU compiler rejects a program that does not fit. The GPU compiler does not.
    fits = program.compiled is not None
    if chip.platform == "cuda":
        fits = program.needed_bytes <= chip.memory_bytes
    parameters = state["params"] if what == "eval" else state.params
    result = {
        "config": config.variant,
        "what": what,
        "topology": topology,
        "slices": slices,
        "mesh": dict(mesh.shape),
        "images": images.shape[:3],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(parameters)),
        "memory": {
            "capacity": chip.memory_bytes,
            "needed": program.needed_bytes,
            "arguments": program.argument_bytes,
            "temporaries": program.temporary_bytes,
            "outputs": program.output_bytes,
            "program": program.program_bytes,
        },
        "fits": fits,
    }
    if fits:
        result |= costs(program, chip, model_flops(config, images.shape, what), mesh.size)
    else:
        result["helps"] = suggestions(config, mesh, state, images.shape[0], what)
    return result | {"level": jax.config.jax_optimization_level, **versions()}


def format_report(result: dict[str, Any]) -> str:
    """Formats the result of `compile_report` as text."""
    memory, (images, height, width) = result["memory"], result["images"]
    devices = math.prod(result["mesh"].values())
    where = result["topology"] + (f", {result['slices']} slices" if result["slices"] > 1 else "")
    mesh = ", ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    rows = {
        "parameters": f"{result['parameters'] / 1e6:.2f} M",
        "batch": f"{images}, {images / devices:g} a device, of {height} x {width}",
        "memory": f"{_gb(memory['needed'])} of {_gb(memory['capacity'])} a device",
    }
    if result["fits"]:
        parts = ("arguments", "temporaries", "outputs", "program")
        rows["memory"] += ": " + ", ".join(f"{part} {_gb(memory[part])}" for part in parts)
        kinds = [
            f"{kind} {total['count']} times, {_gb(total['bytes'])}"
            for kind, total in result["collectives"].items()
        ]
        sheet = result["data_sheet"]
        # The calls of cuDNN and cuBLAS in programs for GPUs have no count.
        counted = f"{result['flops'] / 1e12:.2f} T a device" if result["flops"] else "not counted"
        rows |= {
            "operations": f"{counted}; the model's own {result['model_flops'] / 1e12:.2f} T",
            "traffic": f"{_gb(result['memory_traffic'])} between a device and its memory",
            "collectives": f"each device sends: {'; '.join(kinds) or 'nothing'}",
            "data sheet": f"{sheet['step_seconds'] * 1e3:.1f} ms a step, one after the other: "
            + ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in sheet["seconds"].items())
            + "; without the work inside the kernels",
        }
        if found := result.get("by_instruction"):
            seconds = found["step_seconds"]
            at = " at full rates" if found["source"] == "roofline" else ""
            rows[found["source"]] = (
                f"{seconds * 1e3:.1f} ms a step{at}, {images / seconds:.1f} images/s,"
                f" MFU {found['mfu']:.0%}; {format_kinds(found)}"
            )
            rows["where"] = format_summary(found).lstrip()
        rows["compiled in"] = f"{result['compile_seconds']:.0f} s, at level {result['level']}"
    else:
        missing = memory["needed"] - memory["capacity"]
        rows["memory"] += f": does not fit, {_gb(missing)} over capacity"
        rows["what helps"] = ("\n" + " " * 15).join(result["helps"])
    count = f"{devices} device{'s' if devices > 1 else ''}"
    title = f"{result['config']}, {result['what']}, on {where}: {count}, mesh {mesh}"
    return "\n".join([title, *(f"  {name:<13}{row}" for name, row in rows.items())])


def _gb(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number > 1e7 else f"{number / 1e6:.2f} MB"


def compile_recipe(
    config: ConfigDict, topology: str, slices: int, what: str, workdir: str | pathlib.Path
):
    """Prints the report of `compile_report` and writes it to `compile.json` in `workdir`.

    If the program fits, `compile.svg` shows the time of every module.

    Raises:
      ConfigError: as `compile_report` does.
    """
    result = compile_report(config, topology, slices, what)
    print(format_report(result))
    with WorkDirectory(workdir) as directory:
        write_text(directory.folder / "compile.json", json.dumps(result, indent=1) + "\n")
        if found := result.get("by_instruction"):
            title = f"{config.variant}, {what}, {topology}: a step, estimated ({found['source']})"
            picture = draw_icicle(found["by_module"], title)
            write_text(directory.folder / "compile.svg", picture + "\n")
