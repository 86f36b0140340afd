"""jaxseg beside PyTorch on CPU, in turns, each in processes of its own.

    pip install torch==2.13.0        # a CPU build is enough
    python benchmarks/cpu_vs_torch.py [--what model --height 512 --width 1024 --batch 1]
    python benchmarks/cpu_vs_torch.py --what dcnv3

Either UperNet InternImage-T, forward and train step, or DCNv3 alone at its four stages, forward and
with all gradients. Both sides have the same weights and inputs, in float32, and must agree before
anything is timed. In one process their thread pools would disturb each other. The result, with the
least time of each call, is JSON.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
import torch_intern_image

import pallas_kernels
from configs import cityscapes
from converters.rules import to_variables
from jaxseg import losses, optim, train_step
from jaxseg.models import segmentor
from pallas_kernels import bench, shapes


def model_calls(side, options):
    """The calls of one side by name; each returns what the other side's must be equal to."""
    rng = np.random.default_rng(0)
    shape = (options.batch, options.height, options.width, 3)
    images = rng.standard_normal(shape).astype(np.float32)
    labels = rng.integers(0, 19, shape[:3])
    torch.manual_seed(0)
    config = cityscapes.get_config()
    backbone = config.model.backbone
    # Random numbers are no part of the comparison.
    backbone.drop_path = 0.0
    config.model.decode_head.dropout = config.model.auxiliary_head.dropout = 0.0
    theirs = torch_intern_image.UPerNet(backbone.channels, backbone.depths, backbone.groups)
    if side == "torch":
        calls = torch_model(theirs, images, labels)
    else:
        named = torch_intern_image.original_state(theirs)
        calls = jaxseg_model(config, named, images, labels)
    if options.batch == 1:  # batch norm of a pooled 1×1 map needs two images
        calls.pop("train_step")
    return calls


def jaxseg_model(config, named, images, labels):
    """Forward pass and train step of jaxseg."""
    variables = jax.tree.map(jnp.asarray, to_variables(named))
    model = segmentor.build(config.model)
    forward = jax.jit(lambda variables, x: segmentor.apply(model, variables, x)[0].logits)
    optimizer = optim.make(config.optim, config.model.backbone, config.steps)
    step = jax.jit(train_step.make_train_step(config, model, optimizer), donate_argnums=0)
    opt_state = optimizer.init(variables["params"])
    # Copies: the step donates its state.
    state = train_step.TrainState(
        jnp.int32(0), **jax.tree.map(jnp.copy, variables), opt_state=opt_state
    )
    batch = {"image": images, "label": labels.astype(np.int32)}

    def train():
        nonlocal state
        state, logs = step(state, batch)
        jax.block_until_ready((state, logs))
        return [np.asarray(logs["loss"])]

    return {"forward": lambda: [np.asarray(forward(variables, images))], "train_step": train}


def torch_model(model, images, labels):
    """The same of PyTorch."""
    images, labels = torch.from_numpy(images), torch.from_numpy(labels)
    adamw = torch.optim.AdamW(model.parameters(), lr=6e-5, weight_decay=0.05)

    def forward():
        model.eval()
        with torch.no_grad():
            return [model(images).permute(0, 2, 3, 1).numpy()]

    def train():
        model.train()
        logits, auxiliary = (torch_intern_image.resize(x, labels.shape[1:]) for x in model(images))
        loss = F.cross_entropy(logits, labels, ignore_index=losses.IGNORE)
        loss += 0.4 * F.cross_entropy(auxiliary, labels, ignore_index=losses.IGNORE)
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        return [loss.detach().numpy()]

    return {"forward": forward, "train_step": train}


def dcnv3_calls(side, options):
    """As `model_calls`."""
    build = {"jaxseg": jaxseg_dcnv3, "torch": torch_dcnv3}[side]
    stages = shapes.calls("intern_image_t", (options.height, options.width))
    return {
        f"{stage}, {direction}": call
        for stage, shape in stages.items()
        for direction, call in build(shape, *dcnv3_arrays(shape, options.batch)).items()
    }


def dcnv3_arrays(shape, batch):
    """Value, offset and mask, and a cotangent."""
    value, offset, mask = (np.array(x) for x in bench.dcnv3_case(shape, batch, jnp.float32)[1])
    # The gradient jumps at whole pixels, where rounding would decide what it is.
    offset[np.abs(offset - np.round(offset)) < 1e-3] += 2e-3
    cotangent = np.random.default_rng(1).standard_normal(value.shape, np.float32)
    return [value, offset, mask], cotangent


def jaxseg_dcnv3(shape, arguments, cotangent):
    """DCNv3 of jaxseg, forward, and forward with all gradients."""
    arguments, cotangent = jax.tree.map(jnp.asarray, (arguments, cotangent))
    operator = functools.partial(
        pallas_kernels.dcnv3,
        kernel_size=3,
        stride=1,
        padding=1,
        dilation=1,
        groups=shape.groups,
        offset_scale=1.0,
    )

    @jax.jit
    def gradients(arguments, cotangent):
        output, transpose = jax.vjp(operator, *arguments)
        return output, *transpose(cotangent)

    return {
        "forward": lambda: [np.asarray(operator(*arguments))],
        "forward and backward": lambda: [np.asarray(x) for x in gradients(arguments, cotangent)],
    }


def torch_dcnv3(shape, arguments, cotangent):
    """The same of PyTorch."""
    arguments = [torch.from_numpy(x).requires_grad_() for x in arguments]
    cotangent = torch.from_numpy(cotangent)

    def forward():
        with torch.no_grad():
            return [torch_intern_image.dcnv3(*arguments, shape.groups).numpy()]

    def gradients():
        output = torch_intern_image.dcnv3(*arguments, shape.groups)
        found = torch.autograd.grad(output, arguments, cotangent)
        return [output.detach().numpy(), *(x.numpy() for x in found)]

    return {"forward": forward, "forward and backward": gradients}


def least_seconds(calls, rounds):
    """The least time of each call after a first that compiles."""
    seconds = {}
    for name, call in calls.items():
        call()
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        seconds[name] = min(times)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=("model", "dcnv3"), default="model")
    for name, default in (("height", 512), ("width", 1024), ("batch", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--side", choices=("jaxseg", "torch"), help="time this side only")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    calls = {"model": model_calls, "dcnv3": dcnv3_calls}[options.what]
    if options.side:
        print(json.dumps(least_seconds(calls(options.side, options), options.rounds)))
        return

    difference = largest_difference(calls("jaxseg", options), calls("torch", options))
    assert difference < 1e-4, difference

    seconds = {}
    for _ in range(options.turns):
        for side in ("jaxseg", "torch"):
            command = [sys.executable, *sys.argv, "--side", side]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            for name, taken in json.loads(output.splitlines()[-1]).items():
                times = seconds.setdefault(name, {})
                times[side] = min(taken, times.get(side, taken))
    result = {
        "what": options.what,
        "input": [options.batch, options.height, options.width, 3],
        "seconds": seconds,
        "speedup": {k: round(v["torch"] / v["jaxseg"], 2) for k, v in seconds.items()},
        "largest_relative_difference": difference,
        "threads": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        "date": datetime.date.today().isoformat(),
    }
    print(json.dumps(result, indent=1))


def largest_difference(ours, theirs):
    """Of any array that the calls return, relative to the largest number in it."""
    return max(
        float(np.abs(actual - expected).max() / np.abs(expected).max())
        for name, call in theirs.items()
        for actual, expected in zip(ours[name](), call(), strict=True)
    )


if __name__ == "__main__":
    main()
