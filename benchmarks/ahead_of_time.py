"""Reports what the published recipes need on TPUs, as the TPU compiler states it; no TPU is needed.

pip install '.[tpu]'
python benchmarks/ahead_of_time.py [--only PATTERN] [--table]

The program runs `--mode compile` for each row of ROWS: the real train step in bfloat16, including
the kernels. It adds the reports one by one to benchmarks/results/ahead_of_time.json and skips rows
that are already there. A row takes minutes, the largest one half an hour, and up to 20 GB of
memory. With --table, the program prints the file as a table instead.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "ahead_of_time.json"

T = "cityscapes.py:upernet_internimage_t"
XL = "cityscapes.py:upernet_internimage_xl"
BEIT = "coco_stuff164k.py:mask2former_beit_adapter_l"
H = "coco_stuff164k.py:mask2former_internimage_h"
DINOV3_7B = "ade20k.py:mask2former_dinov3_vit7b16"
# One variant for each size of a backbone and each head.
RECIPES = (
    T,
    "cityscapes.py:upernet_internimage_s",
    "cityscapes.py:upernet_internimage_b",
    "cityscapes.py:upernet_internimage_l",
    XL,
    "mapillary.py:segformer_internimage_l",
    "mapillary.py:segformer_internimage_xl",
    "ade20k.py:upernet_internimage_h",
    H,
    "ade20k.py:upernet_deit_adapter_t",
    "ade20k.py:upernet_deit_adapter_s",
    "ade20k.py:upernet_deit_adapter_b",
    "ade20k.py:upernet_augreg_adapter_l",
    "ade20k.py:upernet_beit_adapter_l",
    "ade20k.py:upernet_beit_l",
    "coco_stuff10k.py:mask2former_beit_adapter_b",
    BEIT,
    DINOV3_7B,
)
# Weights and moments take 12 bytes per parameter, and frozen weights 4 or 2. They are sharded over
# this many chips, which are a whole slice or a part of it.
SPLIT = {BEIT: 16, H: 16, "ade20k.py:upernet_internimage_h": 16, DINOV3_7B: 16}
# The batch is the published 16, or one image per chip if there are more chips.
ROWS = [(recipe, "v5e:4x4", 1) for recipe in RECIPES] + [
    (recipe, *where)
    for recipe in (T, XL, BEIT, H)
    for where in (("v5p:2x2x4", 1), ("v6e:4x4", 1), ("v5e:16x16", 1), ("v5e:16x16", 4))
]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", metavar="PATTERN", help="rows whose 'recipe topology xSLICES' matches"
    )
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    reports = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    if options.table:
        print(table(reports))
        return
    done = {(report["recipe"], report["topology"], report["slices"]) for report in reports}
    for row in ROWS:
        if row not in done and re.search(options.only, "{} {} x{}".format(*row)):
            reports.append(report_of(*row))
            RESULTS.write_text(json.dumps(reports, indent=1) + "\n")


def report_of(recipe: str, topology: str, slices: int) -> dict:
    """Returns the report of `--mode compile`, with what it was made for."""
    chips = slices * math.prod(map(int, topology.partition(":")[2].split("x")))
    fsdp = SPLIT.get(recipe, 1)
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "jaxseg.main", "--mode", "compile", "--workdir", workdir]
        command += ["--config", f"configs/{recipe}", "--topology", topology]
        command += ["--slices", str(slices), f"--config.batch_size={max(chips, 16)}"]
        subprocess.run([*command, f"--config.mesh.fsdp={fsdp}"], check=True)
        report = json.loads((Path(workdir) / "compile.json").read_text())
    for long in ("by_module", "largest"):
        report.get("by_instruction", {}).pop(long, None)
    versions = {"libtpu": importlib.metadata.version("libtpu")}
    return {"recipe": recipe, **report, **versions, "date": datetime.date.today().isoformat()}


def table(reports: list[dict]) -> str:
    """Formats the reports as a Markdown table, with a line for each report."""
    lines = [
        "| recipe | on | mesh | memory a chip, GB | sent a chip, GB | data sheet, ms |",
        "|---|---|---|---|---|---|",
    ]
    for report in reports:
        memory, fits = report["memory"], report["fits"]
        chips = f"{report['slices']} x " * (report["slices"] > 1) + report["topology"]
        sent = sum(kind["bytes"] for kind in report.get("collectives", {}).values()) / 1e9
        cells = (
            f"`{report['recipe'].replace('.py', '')}`",
            chips,
            " x ".join(map(str, report["mesh"].values())),
            f"{memory['needed'] / 1e9:.1f} of {memory['capacity'] / 1e9:.0f}",
            f"{sent:.2f}" if fits else "",
            f"{report['data_sheet']['step_seconds'] * 1e3:.0f}" if fits else "does not fit",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
