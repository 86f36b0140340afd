"""Prints docs/models/zoo.md: the published models and backbones of the catalogue."""

from jaxseg.zoo.catalogue import BACKBONES, MODELS

HEAD = """\
# Zoo

The published models, with the numbers of their authors: those of
[InternImage](https://github.com/OpenGVLab/InternImage) and
[ViT-Adapter](https://github.com/czczup/ViT-Adapter). Nothing in these tables was measured with
jaxseg. `jaxseg zoo` prints the same. `jaxseg convert --zoo NAME --output RUN` downloads a model and
converts it.

mIoU is in percent, at a single scale and at several. FLOPs are multiply-adds of one image.

This page is generated from `jaxseg/zoo/catalogue.py`.
"""


WITHOUT_WEIGHTS = """\
## Recipes without published weights

| `--config` | published |
|---|---|
| `configs/potsdam.py:mask2former_beit_adapter_l` | mIoU 80.0 |
| `configs/chase_db1.py:mask2former_beit_adapter_l` | mean Dice 89.4 |
| `configs/ade20k.py:upernet_internimage_g` | no score |
| `configs/ade20k.py:upernet_deit_adapter_light_b` | no score |
| `configs/ade20k.py:upernet_beit_l` | no score |
| `configs/ade20k.py:mask2former_beitv2_adapter_l` | no score |
"""


def number(value: object) -> str:
    return "" if value is None else str(value)


def page() -> str:
    """Returns the whole page."""
    parts = [HEAD]
    for dataset in dict.fromkeys(model.dataset for model in MODELS):
        parts.append(f"## {dataset}\n")
        parts.append("| name | mIoU | multi-scale | parameters (M) | GFLOPs | `--config` |")
        parts.append("|---|---:|---:|---:|---:|---|")
        for model in MODELS:
            if model.dataset == dataset:
                cells = [f"`{model.name}`", number(model.miou_ss), number(model.miou_ms)]
                cells += [number(model.params_m), number(model.flops_g), f"`{model.config}`"]
                parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    parts.append(WITHOUT_WEIGHTS)
    parts.append("## Pre-trained backbones\n\nTo start from, with `--config.init=zoo:NAME`.\n")
    parts += [f"- `{weights.name}`" for weights in BACKBONES]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
