"""Runs all measurements that need a GPU or TPU, best first, in parts that can be resumed.

    benchmarks/gpu_day.sh [--output FOLDER] [--only PART …] [--dry-run]
    benchmarks/tpu_day.sh [--output FOLDER] [--only PART …] [--dry-run]

A part is a separate program and has eight minutes. When it is done it writes FOLDER/PART.json. Its
output is in FOLDER/PART.log. A part whose .json exists is skipped, so a day that was interrupted
goes on where it stopped. A part that fails is reported and does not stop the others; the next start
tries it again. FOLDER/compiled keeps the compiled executables, for parts that share one and for the
next start. At the end the program prints the table for the README and writes it to
FOLDER/README.md. FOLDER is `benchmarks/results/DEVICE` by default.

`--dry-run` runs every part on the CPU with tiny sizes, to check that all parts work.

The exit status is 0 if every part is done, else 1.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jaxlib

from jaxseg.bench.table import is_measurement, markdown_table

ROOT = pathlib.Path(__file__).resolve().parent.parent
PART_SECONDS = 480
# End of a log that is no failure -> why the part cannot be measured here.
SKIPPED = {
    "No module named 'torch'": "torch is not installed; benchmarks/torch_internimage.py says what"
    " to carry",
    "--autotune is for the kernels for GPUs": "needs a GPU",
}
QUICK_COMPILATION = "--xla_backend_optimization_level=0"
if jaxlib.__version__.startswith("0.10."):  # other versions may lack this flag
    QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
CITYSCAPES = "configs/cityscapes.py"
MASK2FORMER = "configs/coco_stuff164k.py:mask2former_beit_adapter_l"
RECIPES = {  # the recipes that are timed, and the images per device of a train step
    "internimage_t": (f"{CITYSCAPES}:upernet_internimage_t", 8),
    "internimage_l": (f"{CITYSCAPES}:upernet_internimage_l", 2),
    "deit_adapter_b": ("configs/ade20k.py:upernet_deit_adapter_b", 8),
    "mask2former_beit_adapter_l": (MASK2FORMER, 2),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """Describes a measurement, which runs as a Python program.

    Attributes:
      name: the name of the part and of its files.
      arguments: the arguments of Python.
      json_option: the option that takes the JSON file; None for pytest, whose last line becomes the
        JSON file.
      environment: additional environment variables.
    """

    name: str
    arguments: Sequence[str]
    json_option: str | None = "--json"
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def throughput(name: str, recipe: str, what: str, batch: int, tiny: bool, *settings: str) -> Part:
    """Returns a part that runs `jaxseg bench train` or `jaxseg bench infer`."""
    arguments = ["-m", "jaxseg.bench", what]
    if tiny:
        recipe, batch = tiny_recipe(recipe), 2
        arguments += ["--steps", "1"]
    changes = [f"--config.{setting}" for setting in settings]
    return Part(name, [*arguments, "--config", recipe, "--batch", str(batch), *changes])


def tiny_recipe(recipe: str) -> str:
    """Returns the recipe with a model that compiles in seconds."""
    file, _, variant = recipe.partition(":")
    return f"benchmarks/tiny_recipes.py:{pathlib.Path(file).stem}.{variant}"


def parts(platform: str, tiny: bool) -> list[Part]:
    """Returns the parts of the day on "gpu" or "tpu", best first.

    Args:
      platform: "gpu" or "tpu".
      tiny: use tiny sizes, for a dry run.
    """
    kernel_tests = ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests"]
    if tiny:
        kernel_tests += ["-k", "finite_differences", "-m", f"{platform} and not full"]
    else:
        # There may be only one device.
        kernel_tests += ["-k", "not eight_devices", "-m", platform]
    test_platform = {"JAXSEG_TEST_PLATFORM": {"gpu": "cuda", "tpu": "tpu"}[platform]}
    found = [
        Part("selftest", ["-m", "jaxseg.selftest"]),
        Part("kernel_tests", kernel_tests, None, {} if tiny else test_platform),
    ]

    t, _ = RECIPES["internimage_t"]
    for batch, name in ((8, "8"), (2, "2"), (0, "largest")):
        found.append(throughput(f"train_internimage_t_{name}", t, "train", batch, tiny))
    for name, (recipe, batch) in list(RECIPES.items())[1:]:
        if not name.startswith("mask2former"):
            found.append(throughput(f"train_{name}", recipe, "train", batch, tiny))
            continue
        for suffix, remat in (("", False), ("_remat", True)):
            settings = [f"model.{part}.remat={remat}" for part in ("backbone", "decode_head")]
            row = f"train_{name}{suffix}"
            found.append(throughput(row, recipe, "train", batch, tiny, *settings))
    for name, (recipe, _) in RECIPES.items():
        found.append(throughput(f"infer_{name}", recipe, "infer", 1, tiny))

    for operator, names in (SMALLEST if tiny else LARGEST).items():
        bench = ["-m", "pallas_kernels.bench", "--shapes", *names]
        found.append(Part(f"bench_{operator}", bench))
        if platform == "gpu":
            found.append(Part(f"autotune_{operator}", [*bench, "--autotune", "--write"]))
    tiny_attention = ["--shapes", "vit_b_512", "--rounds", "1"] if tiny else []
    found.append(Part("attention", ["benchmarks/attention.py", *tiny_attention]))
    if platform == "gpu":
        torch = ["benchmarks/torch_internimage.py"]
        torch += ["--tiny", "--hw", "64", "64", "--batch", "2", "--steps", "1"] if tiny else []
        found.append(Part("torch_internimage_t", torch))
    for name in ("internimage_t", "mask2former_beit_adapter_l"):
        recipe, batch = RECIPES[name]
        arguments = ["benchmarks/top_kernels.py"]
        if tiny:
            recipe, batch = tiny_recipe(recipe), 2
            arguments += ["--steps", "1"]
        arguments += ["--config", recipe, "--batch", str(batch)]
        found.append(Part(f"top_kernels_{name}", arguments))
    return found


# The three calls of each operator that move the most data at the published crops.
LARGEST = {
    "dcnv3": (
        "internimage_h 1024x1024 stage 0",
        "internimage_xl 512x1024 stage 0",
        "internimage_t 512x1024 stage 0",
    ),
    "ms_deform_attn": (
        "pixel_decoder_1024 896x896 encoder",
        "vit_adapter_l 896x896 injector",
        "vit_adapter_l 896x896 extractor",
    ),
}
SMALLEST = {
    "dcnv3": ("internimage_t 512x512 stage 3",),
    "ms_deform_attn": ("pixel_decoder_256 128x128 encoder",),
}


def run(part: Part, output: pathlib.Path, environment: dict[str, str]) -> str:
    """Runs a part and returns "done", "there already", or what went wrong."""
    file = output / f"{part.name}.json"
    if file.exists() and "skipped" not in json.loads(file.read_text()):
        return "there already"
    half = output / f"{part.name}.part"  # renamed when it is complete
    command = [sys.executable, *part.arguments]
    if part.json_option:
        command += [part.json_option, str(half)]
    log = output / f"{part.name}.log"
    with log.open("w") as stream:
        try:
            status = subprocess.run(
                command,
                cwd=ROOT,
                env=environment | part.environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=PART_SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"not done after {PART_SECONDS} s; see {log}"
    lines = log.read_text().strip().splitlines() or [""]
    reason = next((why for end, why in SKIPPED.items() if status and end in lines[-1]), None)
    if reason:
        half.write_text(json.dumps({"skipped": reason}) + "\n")
    elif status:
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        return f"exit status {status}: {(errors or lines)[-1]}; see {log}"
    elif part.json_option is None:
        half.write_text(json.dumps({"tests": lines[-1].strip("= ")}) + "\n")
    half.rename(file)
    return "done"


def table(output: pathlib.Path, failed: Mapping[str, str]) -> str:
    """Returns the table for the README: the finished parts, and the errors of those that failed."""
    measurements, others = [], []
    for file in sorted(output.glob("*.json")):
        found: dict[str, Any] = json.loads(file.read_text())
        if is_measurement(found):
            measurements.append(found)
        elif "tests" in found:
            others.append(f"- kernel tests: {found['tests']}")
        elif "checks" in found:
            passed = sum(check["passed"] for check in found["checks"])
            others.append(f"- selftest: {passed} of {len(found['checks'])} checks passed")
        elif "skipped" in found:
            others.append(f"- {file.stem}: {found['skipped']}")
        elif "milliseconds" in found:
            size = "{} x {}".format(*found["hw"])
            times = _listed(found["milliseconds"])
            others.append(f"- PyTorch, batch {found['batch']} of {size}: {times}")
        elif "attention_milliseconds" in found:
            for shape, times in found["attention_milliseconds"].items():
                others.append(f"- attention, {shape}, batch {found['batch']}: {_listed(times)}")
    others += [f"- {name}: {outcome}" for name, outcome in failed.items()]
    return markdown_table(measurements) + "".join(f"{line}\n" for line in others)


def _listed(milliseconds):
    return ", ".join(f"{name} {time} ms" for name, time in milliseconds.items())


def device_name(wanted: str, environment: dict[str, str]) -> str:
    """Returns the device's name as part of a path.

    A separate process asks for it, because a process keeps the device that it has used.
    """
    program = "import jax; print(jax.default_backend(), jax.devices()[0].device_kind)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit("day: jax does not start here; see above")
    backend, _, kind = done.stdout.strip().splitlines()[-1].partition(" ")
    if backend != wanted:
        sys.exit(
            f"day: jax finds no {wanted} here, but a {backend}; --dry-run tries the day on CPU"
        )
    return re.sub(r"\W+", "_", kind.lower())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("platform", choices=("gpu", "tpu"))
    parser.add_argument("--output", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--list", action="store_true", help="print the parts and stop")
    options = parser.parse_args()
    chosen = parts(options.platform, options.dry_run)
    unknown = set(options.only or ()) - {part.name for part in chosen}
    if unknown:
        sys.exit(f"day: no such part: {', '.join(sorted(unknown))}; --list prints them")
    chosen = [part for part in chosen if not options.only or part.name in options.only]
    if options.list:
        print("\n".join(part.name for part in chosen))
        return
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    if options.dry_run:
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK_COMPILATION}
    output = options.output or ROOT / "benchmarks" / "results" / device_name(
        "cpu" if options.dry_run else options.platform, environment
    )
    output.mkdir(parents=True, exist_ok=True)
    environment["JAX_COMPILATION_CACHE_DIR"] = str(output.resolve() / "compiled")
    failed = {}
    for part in chosen:
        begun = time.monotonic()
        print(f"{part.name:<40}", end="", flush=True)
        outcome = run(part, output, environment)
        if outcome not in ("done", "there already"):
            failed[part.name] = outcome
        print(f"{outcome} ({time.monotonic() - begun:.0f} s)", flush=True)
    text = table(output, failed)
    (output / "README.md").write_text(text)
    print("\n" + text)
    if failed:
        sys.exit(f"day: {len(failed)} parts are not done; run the same command to retry them")


if __name__ == "__main__":
    main()
