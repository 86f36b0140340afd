"""Compares the compilers' estimates of train steps between versions of jaxseg; no device is needed.

pip install '.[tpu]'   # for TPUs; '.[cuda]' for H100, in another environment
python benchmarks/step_estimates.py [--only PATTERN] [--table]
python benchmarks/step_estimates.py --row NAME --text FILE --commit COMMIT

The program runs `jaxseg compile` for each row of ROWS, in bfloat16, and adds the result to
benchmarks/results/step_estimates.json under the commit of the working tree, with "-dirty" at its
end if the tree has changes. PATTERN is a regular expression: 'internimage_t$' is one row. Without
it, all rows are compiled, which needs both compilers. On a TPU the estimate is the compiler's own.
On a GPU it is the bytes that the program moves; what the caches save is not known.

`--text` adds the result of another version from the text of its program, which XLA writes with
XLA_FLAGS=--xla_dump_to=FOLDER: *after_codegen.txt for a TPU, *after_optimizations.txt for a GPU.
`--table` prints all results.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from jaxseg.aot.profile_summary import summarize
from jaxseg.aot.step_profile import instruction_costs
from jaxseg.atomic_files import write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "step_estimates.json"


class Row(NamedTuple):
    """A train step: the recipe, the topology, images, and the compiler's level of optimization."""

    recipe: str
    topology: str
    images: int
    level: str = "O1"


ROWS = {
    "internimage_t": Row("cityscapes.py:upernet_internimage_t", "v5e:1x1", 2),
    "internimage_l": Row("cityscapes.py:upernet_internimage_l", "v5e:1x1", 2),
    "deit_adapter_b": Row("ade20k.py:upernet_deit_adapter_b", "v5e:1x1", 2),
    "mask2former_beit_adapter_l": Row(
        # One image a chip; alone, its statistics for batch norm would have no variance.
        "ade20k.py:mask2former_beit_adapter_l_cocostuff",
        "v5p:2x2x1",
        4,
    ),
    "internimage_t H100": Row("ade20k.py:upernet_internimage_t", "h100:1", 2),
    "mask2former_beit_adapter_l H100": Row(
        "ade20k.py:mask2former_beit_adapter_l_cocostuff", "h100:1", 2
    ),
    # At the compiler's default level, which takes up to half an hour.
    "internimage_t O2": Row("cityscapes.py:upernet_internimage_t", "v5e:1x1", 2, "O2"),
    "internimage_l O2": Row("cityscapes.py:upernet_internimage_l", "v5e:1x1", 2, "O2"),
    "mask2former_beit_adapter_l O2": Row(
        "ade20k.py:mask2former_beit_adapter_l_cocostuff", "v5p:2x2x1", 4, "O2"
    ),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="PATTERN", help="rows whose name matches")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--row", choices=ROWS)
    parser.add_argument("--text", type=Path, metavar="FILE")
    parser.add_argument("--commit")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if options.table:
        print(table(results))
        return
    if options.text:
        if not (options.row and options.commit):
            parser.error("--text needs --row and --commit")
        chip = ROWS[options.row].topology.partition(":")[0]
        costs = instruction_costs(options.text.read_text(), chip)
        add(results, options.row, options.commit, summarize(costs))
        return
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.check_output(command, cwd=ROOT, text=True).strip()
    for name, row in ROWS.items():
        if re.search(options.only, name):
            add(results, name, commit, compiled(row))


def compiled(row: Row) -> dict:
    """Returns the sums that `jaxseg compile` reports for a row."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "jaxseg.main", "--mode", "compile", "--workdir", workdir]
        command += ["--config", f"configs/{row.recipe}", "--topology", row.topology]
        command += [f"--config.batch_size={row.images}"]
        environment = os.environ | {"JAX_OPTIMIZATION_LEVEL": row.level}
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
        report = json.loads((Path(workdir) / "compile.json").read_text())
    return report["by_instruction"] | {"memory": report["memory"]["needed"]}


def add(results: dict, name: str, commit: str, found: dict):
    """Adds a result to the file."""
    kept = {
        key: found[key]
        for key in (
            "seconds",
            "bytes",
            "by_kind",
            "kernel_calls",
            "kernel_calls_unknown",
            "unknown",
        )
    }
    if "memory" in found:
        kept["memory_bytes"] = found["memory"]
    compiler = "jaxlib" if ROWS[name].topology.startswith("h100") else "libtpu"
    results.setdefault(name, {})[commit] = kept | {
        compiler: importlib.metadata.version(compiler),
        "jax": importlib.metadata.version("jax"),
        "date": datetime.date.today().isoformat(),
    }
    write_text(RESULTS, json.dumps(results, indent=1) + "\n")


def table(results: dict) -> str:
    """Formats the results as a Markdown table; ratios are to the first commit of a row."""
    lines = [
        "| step | commit | estimate | ratio | copies and transposes | not counted |",
        "|---|---|---|---|---|---|",
    ]
    for name, commits in results.items():
        of_bytes = next(iter(commits.values())).get("bytes")
        key, unit, factor = ("bytes", "GB", 1e-9) if of_bytes else ("seconds", "ms", 1e3)
        first = next(iter(commits.values()))[key]
        for commit, found in commits.items():
            seconds = found["seconds"]
            copies = found["by_kind"].get("copies and transposes", 0.0) / seconds
            left_out = f"{found['unknown']} instructions, {found['kernel_calls_unknown']} kernels"
            ratio = f"{found[key] / first:.2f} | {copies:.0%} | {left_out} |"
            lines.append(f"| {name} | {commit} | {found[key] * factor:.1f} {unit} | {ratio}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
