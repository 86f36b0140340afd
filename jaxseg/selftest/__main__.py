"""Checks that jaxseg computes the right numbers on this device.

    python -m jaxseg.selftest [--json FILE]

It takes about a minute and does four things:

* It runs each operator of `pallas_kernels` as models call it on this device. Output and
  gradients are compared with the definition (`pallas_kernels.reference`), at three shapes, in
  float32 and bfloat16.
* It runs one small model of each family. Logits, loss, gradient norm and the loss after one update
  are compared with the numbers that come with the package (`numbers.json`).
* It writes and reads a checkpoint.
* It prints the device, its memory, its driver and the installed packages, for bug reports.

The exit status is 0 if all checks pass, else 1. `--write-numbers FILE` writes the numbers of this
machine in the form of `numbers.json`. Use it after changing a model.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import pathlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from absl import logging

from jaxseg.atomic_files import write_text
from jaxseg.checkpoints.weights import find_checkpoint, load_on_device, save_weights
from jaxseg.distributed import start
from jaxseg.errors import exit_with_message
from jaxseg.models import kernels
from jaxseg.models.segmentation_model import build_model
from jaxseg.reporting.manifest import versions
from jaxseg.selftest import models, operators
from jaxseg.selftest.check import Check, Errors, checked


def checkpoint_errors() -> Errors:
    """Counts the arrays of a checkpoint that are not read as they were written."""
    config = models.config_of(models.INTERNIMAGE, models.SEGFORMER)
    model = build_model(config.model)
    written = models.filled(model)
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "run"
        save_weights(run, written, config.to_dict())
        found = load_on_device(find_checkpoint(run), model)
    pairs = zip(jax.tree.leaves(written), jax.tree.leaves(found), strict=True)
    changed = sum(not np.array_equal(a, b) for a, b in pairs)
    return {"arrays that changed": (changed, 0.5)}


def facts() -> dict[str, str]:
    """Returns facts about the machine, its devices and the installed packages."""
    device = jax.devices()[0]
    limits = [(d.memory_stats() or {}).get("bytes_limit") for d in jax.local_devices()]
    found = {
        "devices": f"{jax.device_count()} {device.device_kind} ({device.platform})",
        "memory": f"{limits[0] / 1e9:.1f} GB a device" if limits[0] else "not reported",
        "platform": " ".join(device.client.platform_version.split()),
        "kernels": kernels.describe_kernels({}),
        "machine": platform.platform(),
    }
    if device.platform == "gpu" and (driver := _nvidia_driver()):
        found["driver"] = driver
    return found | versions()


def _nvidia_driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout else None


def checks() -> Iterator[Check]:
    """Runs all checks and yields the result of each."""
    for operator, shapes in operators.CASES.items():
        for shape in shapes:
            for dtype in ("float32", "bfloat16"):
                arguments = (operator, shape, dtype)
                yield checked(
                    " ".join(arguments), functools.partial(operators.operator_errors, *arguments)
                )
    yield checked("kernels compile here", operators.kernel_errors)
    for name in models.MODELS:
        yield checked(name, functools.partial(models.model_errors, name))
    yield checked("checkpoint", checkpoint_errors)


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="jaxseg selftest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the results there")
    parser.add_argument("--write-numbers", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.ERROR)  # checkpointing logs several lines per save
    with exit_with_message("jaxseg selftest"):
        start.check_platform()
    # By default GPUs and TPUs multiply float32 matrices at lower precision.
    with jax.default_matmul_precision("highest"):
        if options.write_numbers:
            models.write_numbers(options.write_numbers)
            return
        machine = facts()
        for name, value in machine.items():
            print(f"{name:<18}{value}")
        print(f"\n{'check':<32}{'error / allowed':>16}{'seconds':>9}")
        found = []
        for check in checks():
            found.append(check)
            verdict = "" if check.passed else f"  FAILED: {check.worst}"
            print(f"{check.name:<32}{check.error:>16.3f}{check.seconds:>9.1f}{verdict}", flush=True)
    failed = [check.name for check in found if not check.passed]
    seconds = sum(check.seconds for check in found)
    print(f"\n{len(found) - len(failed)} of {len(found)} checks passed in {seconds:.0f} s")
    if options.json:
        result = {
            "facts": machine,
            "date": datetime.date.today().isoformat(),
            "passed": not failed,
            "checks": [{**dataclasses.asdict(c), "passed": c.passed} for c in found],
        }
        write_text(options.json, json.dumps(result, indent=1) + "\n")
    if failed:
        sys.exit(f"jaxseg selftest: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
