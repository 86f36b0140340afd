"""Estimates weak scaling: writes benchmarks/scaling.md from the results of ahead_of_time.py.

python benchmarks/scaling.py

The estimate is for one image per chip, from 16 chips upward. Nothing was run. Computation takes the
time of the estimate for an executable. Each collective takes the time that its bytes need on the
links of the chip.
"""

import json
from pathlib import Path

from jaxseg.aot import hardware

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "ahead_of_time.json"
ESTIMATES = HERE / "results" / "step_estimates.json"
SIZES = {16: ("v5e:4x4", 1), 256: ("v5e:16x16", 1), 1024: ("v5e:16x16", 4)}
# The topology of each chip's executable for 16 chips, and the most chips that a slice can have.
GENERATIONS = {"v5e": ("v5e:4x4", 256), "v6e": ("v6e:4x4", 256), "v5p": ("v5p:2x2x4", 6144)}
HEAD = """\
# Weak scaling on paper

Written by `benchmarks/scaling.py` from the compiled programs in `results/ahead_of_time.json` \
({versions}). Nothing was run. The batch grows with the chips, one image on each. Each chip's \
model stays the same; only communication grows.

## What a chip sends in a step

The numbers come from the text of the compiled programs for v5e. They are the bytes of each kind \
of collective that a chip sends on a ring of n chips:

- reduce-scatter: (n - 1) / n of the array;
- all-reduce: twice that;
- all-gather: n - 1 times the chip's own shard.

1024 chips are four slices of 256. The last column but one is what a chip sends over the network \
between the slices: its shard of the all-reduces. They are combined \
(`jaxseg.distributed.sharding.compiler_options`) unless the weights are sharded.

| recipe | chips | mesh | all-reduce, MB | all-gather, MB | others, MB | over the network, MB | \
collectives a step |
|---|---|---|---|---|---|---|---|
"""
TIMES = """
## What that costs

Times are in milliseconds.

- *Computation* is the operations over the chip's peak plus the memory traffic over its bandwidth, \
as `jaxseg compile` reports them, of the program for 16 chips. For 1024 chips it includes the \
extra memory traffic of the v5e program on four slices, which copies arrays to combine their \
all-reduces. The work inside the kernels is not counted.
- *Links* is bytes over {links} per chip.
- *Network* is bytes over {networks} per chip, its share of the host's network.
- *Efficiency* is the time of computation and links on 16 chips over the time on n chips. One \
column has the network after the computation, the other at the same time. XLA lets the hosts \
communicate \
in the background, so the truth lies between. A little more than 100% comes from cheaper \
collectives, which XLA finds for a larger mesh.

v5p has slices of up to 6144 chips, so 1024 chips are one slice. Its links take the time of 256 \
chips times (1023 / 1024) / (255 / 256), and nothing goes over the network.

| recipe | chip | computation at 16, 1024 | links at 16, 256, 1024 | network at 1024 | \
efficiency at 256 | at 1024, network after | at 1024, network at the same time |
|---|---|---|---|---|---|---|---|
"""
EXAMPLE = """
For instance `{recipe}` on {chip} at 1024: links {links_mb:.0f} MB / {links:.0f} GB/s = \
{links_ms:.2f} ms; network {network_mb:.2f} MB / {network:.1f} GB/s = {network_ms:.2f} ms; \
({first:.1f} + {first_ms:.2f}) / ({last:.1f} + {links_ms:.2f} + {network_ms:.2f}) = \
{efficiency:.1%}.

More than one image per chip helps further: the bytes per step stay the same.
"""
LIMITS = """
## What it does not say

- Latency. Each collective takes some microseconds for every chip on its way, and more on the \
network. This matters most if weights are sharded.
- Stragglers, and reading the data.
- Whether a chip uses all its links at once. A mesh axis along one side of the torus has half of \
them. A slice that is not the whole torus has no ring.
- How long the computation takes: the time by the data sheet is a rough figure for a program. For \
`cityscapes:upernet_internimage_t` on v5e it is {sheet:.1f} ms for an image. By the compiler's own \
estimate (`results/step_estimates.json`, {date}, XLA's level O2, kernels included), the same \
version takes {then:.1f} ms, and a recent one {now:.1f} ms. A longer computation makes every \
efficiency higher. No TPU has been measured.
"""


def main():
    reports = {
        (report["recipe"], report["topology"], report["slices"]): report
        for report in json.loads(RESULTS.read_text())
        if report["fits"]
    }
    recipes = [
        recipe
        for recipe in dict.fromkeys(recipe for recipe, *_ in reports)
        if all((recipe, *where) in reports for where in SIZES.values())
    ]
    if not recipes:
        raise SystemExit(f"{RESULTS}: none of its recipes has all of {list(SIZES.values())}")
    sent, costs = [], []
    for recipe in recipes:
        programs = {n: reports[recipe, *where] for n, where in SIZES.items()}
        sent += [sent_row(recipe, n, program) for n, program in programs.items()]
        for chip, (topology, slice_size) in GENERATIONS.items():
            if (recipe, topology, 1) in reports:
                costs.append(Cost(recipe, chip, reports[recipe, topology, 1], programs, slice_size))
    first = reports[recipes[0], *SIZES[16]]
    example = costs[0]
    text = HEAD.format(versions=f"jax {first['jax']}, libtpu {first['libtpu']}, {first['date']}")
    text += "\n".join(sent) + "\n"
    text += TIMES.format(links=speeds("link_bandwidth"), networks=speeds("network_bandwidth"))
    text += "\n".join(cost.row() for cost in costs) + "\n"
    text += EXAMPLE.format(
        recipe=example.recipe,
        chip=example.chip,
        links_mb=example.bytes_on_links[1024] / 1e6,
        links=hardware.find_chip(example.chip).link_bandwidth / 1e9,
        links_ms=example.links[1024],
        network_mb=example.bytes_to_network / 1e6,
        network=hardware.find_chip(example.chip).network_bandwidth / 1e9,
        network_ms=example.network,
        first=example.computation[16],
        last=example.computation[1024],
        first_ms=example.links[16],
        efficiency=example.efficiency(1024),
    )
    then, *_, now = json.loads(ESTIMATES.read_text())["internimage_t O2"].values()
    text += LIMITS.format(
        sheet=example.computation[16],
        then=then["seconds"] / 2 * 1e3,  # of two images
        now=now["seconds"] / 2 * 1e3,
        date=now["date"],
    )
    (HERE / "scaling.md").write_text(text)


class Cost:
    """Holds what a step of a recipe takes on one generation, in milliseconds."""

    def __init__(self, recipe, chip, own, programs, slice_size):
        """Estimates the cost.

        Args:
          recipe: the name of the recipe.
          chip: the generation.
          own: the report of this generation's executable for 16 chips.
          programs: the reports of v5e's executables, by the number of chips.
          slice_size: the most chips that a slice of this generation has.
        """
        data = hardware.find_chip(chip)
        self.recipe, self.chip = recipe, chip
        self.bytes_on_links = {n: on_links(program) for n, program in programs.items()}
        self.bytes_to_network = to_network(programs[1024])
        copied = programs[1024]["memory_traffic"] - programs[16]["memory_traffic"]
        if slice_size >= 1024:
            self.bytes_to_network = copied = 0.0
            self.bytes_on_links[1024] = self.bytes_on_links[256] * (1023 / 1024) / (255 / 256)
        computed = sum(own["data_sheet"]["seconds"][part] for part in ("arithmetic", "memory"))
        self.computation = dict.fromkeys(SIZES, computed * 1e3)
        self.computation[1024] += max(copied, 0.0) / data.memory_bandwidth * 1e3
        self.links = {n: b / data.link_bandwidth * 1e3 for n, b in self.bytes_on_links.items()}
        self.network = self.bytes_to_network / data.network_bandwidth * 1e3

    def efficiency(self, n, beside=False):
        network = self.network if n == 1024 else 0.0
        first = self.computation[16] + self.links[16]
        if beside:
            return first / (max(self.computation[n], network) + self.links[n])
        return first / (self.computation[n] + self.links[n] + network)

    def row(self):
        links = ", ".join(f"{self.links[n]:.2f}" for n in SIZES)
        cells = (
            f"`{self.recipe.replace('.py', '')}`",
            self.chip,
            f"{self.computation[16]:.1f}, {self.computation[1024]:.1f}",
            links,
            f"{self.network:.2f}",
            f"{self.efficiency(256):.1%}",
            f"{self.efficiency(1024):.1%}",
            f"{self.efficiency(1024, beside=True):.1%}",
        )
        return f"| {' | '.join(cells)} |"


def on_links(report):
    kinds = report["collectives"].items()
    return sum(total["bytes"] for kind, total in kinds if kind != "send")


def to_network(report):
    return report["collectives"].get("send", {"bytes": 0.0})["bytes"]


def sent_row(recipe, n, report):
    kinds = {kind: total["bytes"] / 1e6 for kind, total in report["collectives"].items()}
    reduced, gathered, sent = (kinds.pop(k, 0.0) for k in ("all-reduce", "all-gather", "send"))
    mesh = " x ".join(map(str, report["mesh"].values()))
    numbers = " | ".join(f"{x:.1f}" for x in (reduced, gathered, sum(kinds.values()), sent))
    count = sum(total["count"] for total in report["collectives"].values())
    return f"| `{recipe.replace('.py', '')}` | {n} | {mesh} | {numbers} | {count} |"


def speeds(field):
    found = [
        f"{getattr(hardware.find_chip(chip), field) / 1e9:g} GB/s ({chip})" for chip in GENERATIONS
    ]
    return ", ".join(found)


if __name__ == "__main__":
    main()
