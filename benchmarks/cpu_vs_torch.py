"""Times jaxseg and PyTorch on CPU, in turns, each in a separate process.

    pip install torch==2.13.0        # a CPU build is enough
    python benchmarks/cpu_vs_torch.py [--height 512 --width 1024 --batch 1 --rounds 10]
    python benchmarks/cpu_vs_torch.py --what dcnv3 --rounds 30

By default the program times the forward pass and the train step of UPerNet InternImage-T. With
`--what dcnv3` it times DCNv3 alone at its four stages, forward and with all gradients. Both sides
have the same weights and inputs, in float32, and must agree before anything is timed. They run in
separate processes because their thread pools would disturb each other in one process. The result is
JSON with the minimum time of each call. Under `taskset -c 0` both sides have one thread, which
other programs on the machine disturb least.
"""

import argparse
import datetime
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
import torch_internimage

import pallas_kernels
from configs import cityscapes
from converters.rules import to_variables
from jaxseg.losses.cross_entropy import IGNORE
from jaxseg.models.segmentation_model import apply_model, build_model
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.state import TrainState
from jaxseg.training.step import make_train_step
from pallas_kernels import bench, shapes


def model_calls(side, options):
    """Returns the calls of one side by name; the results of both sides must agree."""
    rng = np.random.default_rng(0)
    shape = (options.batch, options.height, options.width, 3)
    images = rng.standard_normal(shape).astype(np.float32)
    labels = rng.integers(0, 19, shape[:3])
    torch.manual_seed(0)
    config = cityscapes.get_config()
    backbone = config.model.backbone
    # The comparison uses no random numbers.
    backbone.drop_path = 0.0
    config.model.decode_head.dropout = config.model.auxiliary_head.dropout = 0.0
    theirs = torch_internimage.UPerNet(backbone.channels, backbone.depths, backbone.groups)
    if side == "torch":
        calls = torch_model(theirs, images, labels)
    else:
        named = torch_internimage.original_state(theirs)
        calls = jaxseg_model(config, named, images, labels)
    if options.batch == 1:  # batch norm of a pooled 1×1 map needs two images
        calls.pop("train_step")
    return calls


def jaxseg_model(config, named, images, labels):
    """Returns the forward pass and the train step of jaxseg."""
    variables = jax.tree.map(jnp.asarray, to_variables(named))
    model = build_model(config.model)
    forward = jax.jit(lambda variables, x: apply_model(model, variables, x)[0].logits)
    optimizer = make_optimizer(config.optim, config.model.backbone, config.steps)
    step = jax.jit(make_train_step(config, model, optimizer), donate_argnums=0)
    opt_state = optimizer.init(variables["params"])
    # The state is a copy, because the step donates it.
    state = TrainState(jnp.int32(0), **jax.tree.map(jnp.copy, variables), opt_state=opt_state)
    batch = {"image": images, "label": labels.astype(np.int32)}

    def train():
        nonlocal state
        state, logs = step(state, batch)
        jax.block_until_ready((state, logs))
        return [np.asarray(logs["loss"])]

    return {"forward": lambda: [np.asarray(forward(variables, images))], "train_step": train}


def torch_model(model, images, labels):
    """Returns the forward pass and the train step of PyTorch."""
    images, labels = torch.from_numpy(images), torch.from_numpy(labels)
    adamw = torch.optim.AdamW(model.parameters(), lr=6e-5, weight_decay=0.05)

    def forward():
        model.eval()
        with torch.no_grad():
            return [model(images).permute(0, 2, 3, 1).numpy()]

    def train():
        model.train()
        logits, auxiliary = (torch_internimage.resize(x, labels.shape[1:]) for x in model(images))
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORE)
        loss += 0.4 * F.cross_entropy(auxiliary, labels, ignore_index=IGNORE)
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        return [loss.detach().numpy()]

    return {"forward": forward, "train_step": train}


def dcnv3_calls(side, options):
    """Returns the calls of one side by name, as `model_calls` does, for DCNv3 alone."""
    build = {"jaxseg": jaxseg_dcnv3, "torch": torch_dcnv3}[side]
    stages = shapes.calls("internimage_t", (options.height, options.width))
    return {
        f"{stage}, {direction}": call
        for stage, shape in stages.items()
        for direction, call in build(shape, options.batch).items()
    }


def dcnv3_case(shape, batch):
    """Returns the operator of jaxseg, its arguments, and a cotangent."""
    bind, arguments = bench.dcnv3_case(shape, batch, jnp.float32)
    value, offset, mask = (np.array(x) for x in arguments)
    # The gradient jumps at whole pixels, where rounding would decide its value.
    offset[np.abs(offset - np.round(offset)) < 1e-3] += 2e-3
    cotangent = np.random.default_rng(1).standard_normal(value.shape, np.float32)
    return bind(pallas_kernels.dcnv3), [value, offset, mask], cotangent


def jaxseg_dcnv3(shape, batch):
    """Returns DCNv3 of jaxseg: forward, and forward with all gradients."""
    operator, *arrays = dcnv3_case(shape, batch)
    arguments, cotangent = jax.tree.map(jnp.asarray, arrays)

    @jax.jit
    def gradients(arguments, cotangent):
        output, transpose = jax.vjp(operator, *arguments)
        return output, *transpose(cotangent)

    return {
        "forward": lambda: [np.asarray(operator(*arguments))],
        "forward and backward": lambda: [np.asarray(x) for x in gradients(arguments, cotangent)],
    }


def torch_dcnv3(shape, batch):
    """Returns DCNv3 of PyTorch: forward, and forward with all gradients."""
    _, arguments, cotangent = dcnv3_case(shape, batch)
    arguments = [torch.from_numpy(x).requires_grad_() for x in arguments]
    cotangent = torch.from_numpy(cotangent)

    def forward():
        with torch.no_grad():
            return [torch_internimage.dcnv3(*arguments, shape.groups).numpy()]

    def gradients():
        output = torch_internimage.dcnv3(*arguments, shape.groups)
        found = torch.autograd.grad(output, arguments, cotangent)
        return [output.detach().numpy(), *(x.numpy() for x in found)]

    return {"forward": forward, "forward and backward": gradients}


def answer(calls):
    """Makes the calls that standard input names and prints the seconds of each."""
    for line in sys.stdin:
        call = calls[line.strip()]
        started = time.perf_counter()
        call()
        print(time.perf_counter() - started, flush=True)


def least_seconds(names, rounds):
    """Returns the minimum time of each call by side, after a first call that compiles."""
    sides = {
        side: subprocess.Popen(
            [sys.executable, *sys.argv, "--side", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for side in ("jaxseg", "torch")
    }
    seconds = {name: dict.fromkeys(sides, float("inf")) for name in names}
    for turn in range(rounds + 1):
        for name, best in seconds.items():
            for side, process in sides.items():
                print(name, file=process.stdin, flush=True)
                taken = float(process.stdout.readline())
                if turn:
                    best[side] = min(best[side], taken)
    for process in sides.values():
        process.communicate()
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=("model", "dcnv3"), default="model")
    for name, default in (("height", 512), ("width", 1024), ("batch", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--side", choices=("jaxseg", "torch"), help="time this side only")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    calls = {"model": model_calls, "dcnv3": dcnv3_calls}[options.what]
    if options.side:
        answer(calls(options.side, options))
        return

    names, difference = compare(calls("jaxseg", options), calls("torch", options))
    assert difference < 1e-4, difference
    seconds = least_seconds(names, options.rounds)
    result = {
        "what": options.what,
        "input": [options.batch, options.height, options.width, 3],
        "seconds": seconds,
        "speedup": {k: round(v["torch"] / v["jaxseg"], 2) for k, v in seconds.items()},
        "largest_relative_difference": difference,
        "threads": len(os.sched_getaffinity(0)),
        "processor": platform.processor() or platform.machine(),
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        "date": datetime.date.today().isoformat(),
    }
    print(json.dumps(result, indent=1))


def compare(ours, theirs):
    """Returns the names of the calls and the largest difference of their results.

    The difference is relative to the largest value of the array.
    """
    return list(theirs), max(
        float(np.abs(actual - expected).max() / np.abs(expected).max())
        for name, call in theirs.items()
        for actual, expected in zip(ours[name](), call(), strict=True)
    )


if __name__ == "__main__":
    main()
