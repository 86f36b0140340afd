"""Writes the page that describes a published model: a model card of the Hugging Face Hub."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxseg.errors import ConfigError
from jaxseg.zoo import hub

PROTOCOLS = {"ss": "one scale", "ms": "several scales and mirror images"}
OURS = "library_name: jaxseg"  # a line of every card
WHAT = {"dataset", "split", "protocol"}
MEANS = ("mIoU", "mAcc", "aAcc")


def model_card(
    config: Mapping[str, Any],
    dataset: str,
    classes: Sequence[str],
    metrics: Mapping[str, Any] | None,
    step: int | None,
    repository: str,
    license: str | None = None,
) -> str:
    """Returns a model card: metadata as YAML, then Markdown.

    Args:
      config: the resolved config of the model.
      dataset: the name of the dataset that it is evaluated on.
      classes: the names of its classes.
      metrics: the content of the `metrics.json` of its evaluation, or None if there is none.
      step: the step of its checkpoint: 0 for weights that jaxseg has not trained, None if it is not
        known.
      repository: OWNER/REPOSITORY, or what else `Segmenter.from_pretrained` takes.
      license: the license of the weights, as the Hub names it, such as "apache-2.0".

    Raises:
      ConfigError: if huggingface_hub is not installed, or `metrics` do not say what they are of, or
        are of another step.
    """
    if metrics is not None and (missing := sorted(WHAT - metrics.keys())):
        raise ConfigError(
            f"the metrics have no {' and no '.join(missing)}; evaluate the model again with"
            " `jaxseg eval`, and take its metrics.json"
        )
    if metrics is not None and step is not None and metrics.get("step") != step:
        raise ConfigError(
            f"the metrics are of step {metrics.get('step')}, and the model is of step {step};"
            " evaluate this checkpoint with `jaxseg eval`, and take its metrics.json"
        )
    model, data = config["model"], config["data"]
    kinds = [model["backbone"]["kind"], model["decode_head"]["kind"]]
    metadata = hub.client().ModelCardData(
        model_name=repository.rpartition("/")[2],
        library_name="jaxseg",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "jax", *kinds],
        datasets=[data["dataset"]],
        license=license,
        eval_results=_results(metrics or {}) or None,
    )
    numbered = "\n".join(f"{number}. {name}" for number, name in enumerate(classes))
    return f"""---
{metadata.to_yaml()}
---

# {repository.rpartition("/")[2]}

A model for semantic segmentation: `{kinds[0]}` with the head `{kinds[1]}`, and {len(classes)}
classes of `{dataset}`. It is the recipe `{config["variant"]}` of jaxseg.

## Use

```python
from jaxseg import Segmenter

segment = Segmenter.from_pretrained("{repository}")
result = segment("photo.jpg")
result.classes  # the class of every pixel
result.overlay()  # the classes in color over the image
```

`model.safetensors` has the tensor names and layouts of the original PyTorch code.

## Scores

{_scores(metrics)}

## Training

{_training(config, step)}

## Classes

Ids count from 0.

{numbered}
"""


def _results(metrics):
    """Returns the scores as the Hub's metadata has them, in percent."""
    return [
        hub.client().EvalResult(
            task_type="image-segmentation",
            dataset_type=metrics["dataset"],
            dataset_name=metrics["dataset"],
            dataset_split=metrics["split"],
            metric_type=name,
            metric_name=name,
            metric_value=round(100 * metrics[name], 2),
        )
        for name in MEANS
        if metrics.get(name) is not None
    ]


def _training(config, step):
    if not step:
        return "These weights were converted. `config.json` is that of their recipe in jaxseg."
    data = config["data"]
    height, width = data["crop_hw"]
    initial = f"`{config['init']}`" if config["init"] else "random"
    return f"""| | |
|---|---|
| dataset, split | `{data["dataset"]}`, `{data["train_split"]}` |
| crop | {height} by {width} pixels |
| batch | {config["batch_size"]} images |
| steps | {step} of {config["steps"]} |
| peak learning rate | {config["optim"]["lr"]} |
| initial weights | {initial} |

`config.json` has all settings."""


def _scores(metrics):
    if metrics is None:
        return "No scores of these weights were recorded."
    lines = [
        f"On `{metrics['dataset']}`, `{metrics['split']}`, at {PROTOCOLS[metrics['protocol']]}:",
        "",
        "| score | percent |",
        "|---|---|",
    ]
    means = [(name, metrics[name]) for name in MEANS if metrics.get(name) is not None]
    return "\n".join([*lines, *(f"| {name} | {100 * value:.2f} |" for name, value in means)])
