"""UperNet InternImage-T on CPU: jaxseg beside PyTorch, in turns, each in processes of its own.

    pip install torch==2.13.0        # a CPU build is enough
    python benchmarks/cpu_vs_torch.py [--height 512 --width 1024 --batch 1 --rounds 3]

The PyTorch side is written here from the description of the model; its deformable convolution is
the grid_sample formulation, the only one that PyTorch has without a compiled CUDA operator. Both
sides have the same weights and must agree before anything is timed. In one process their thread
pools would disturb each other. The result is a line of JSON.
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
from torch import nn

from configs import cityscapes
from converters.rules import to_variables
from jaxseg import losses, optim, train_step
from jaxseg.models import segmentor

CLASSES = 150


class ChannelsLastNorm(nn.LayerNorm):
    def __init__(self, channels):
        super().__init__(channels, eps=1e-6)


class DCNv3(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.groups = groups
        self.dw_conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.dw_norm = ChannelsLastNorm(channels)
        self.offset = nn.Linear(channels, groups * 18)
        self.mask = nn.Linear(channels, groups * 9)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)

    def forward(self, x):
        n, h, w, c = x.shape
        g = self.groups
        value = self.input_proj(x)
        query = self.dw_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        query = F.gelu(self.dw_norm(query))
        offset = self.offset(query).view(n, h, w, g, 9, 2)
        mask = self.mask(query).view(n, h, w, g, 9).softmax(-1)
        steps = torch.tensor([-1.0, 0.0, 1.0])
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).view(9, 2)
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        place = torch.stack([columns, rows], -1).view(1, h, w, 1, 1, 2)
        position = (place + grid + offset + 0.5) * 2 / torch.tensor([w, h]) - 1
        # [n·g, h·w, 9, 2], sampled from [n·g, c/g, h, w]
        position = position.permute(0, 3, 1, 2, 4, 5).reshape(n * g, h * w, 9, 2)
        planes = value.view(n, h, w, g, c // g).permute(0, 3, 4, 1, 2).reshape(n * g, c // g, h, w)
        samples = F.grid_sample(planes, position, align_corners=False)
        weight = mask.permute(0, 3, 1, 2, 4).reshape(n * g, 1, h * w, 9)
        sampled = (samples * weight).sum(-1).view(n, c, h, w).permute(0, 2, 3, 1)
        return self.output_proj(sampled)


class Layer(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.norm1, self.norm2 = ChannelsLastNorm(channels), ChannelsLastNorm(channels)
        self.dcn = DCNv3(channels, groups)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(channels, 4 * channels), "fc2": nn.Linear(4 * channels, channels)}
        )
        self.gamma1 = nn.Parameter(torch.ones(channels))
        self.gamma2 = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        x = x + self.gamma1 * self.dcn(self.norm1(x))
        hidden = F.gelu(self.mlp["fc1"](self.norm2(x)))
        return x + self.gamma2 * self.mlp["fc2"](hidden)


class StridedConv(nn.Module):
    def __init__(self, inputs, outputs, bias):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=bias)
        self.norm = ChannelsLastNorm(outputs)

    def forward(self, x):
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Backbone(nn.Module):
    def __init__(self, channels, depths, groups):
        super().__init__()
        self.stem1 = StridedConv(3, channels // 2, bias=True)
        self.stem2 = StridedConv(channels // 2, channels, bias=True)
        widths = [channels * 2**i for i in range(4)]
        self.stages = nn.ModuleList(
            nn.ModuleList(Layer(w, g) for _ in range(d))
            for w, d, g in zip(widths, depths, groups, strict=True)
        )
        self.norms = nn.ModuleList(map(ChannelsLastNorm, widths))
        self.downs = nn.ModuleList(StridedConv(w, 2 * w, bias=False) for w in widths[:-1])

    def forward(self, images):
        x = self.stem2(F.gelu(self.stem1(images)))
        features = []
        for i, stage in enumerate(self.stages):
            for layer in stage:
                x = layer(x)
            x = self.norms[i](x)
            features.append(x.permute(0, 3, 1, 2))
            x = self.downs[i](x) if i < 3 else x
        return features


def conv_bn_relu(inputs, outputs, size):
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def resize(x, hw):
    return F.interpolate(x, tuple(hw), mode="bilinear", align_corners=False)


class UPerNet(nn.Module):
    def __init__(self, channels, depths, groups, head=512, auxiliary=256):
        super().__init__()
        self.backbone = Backbone(channels, depths, groups)
        widths = [channels * 2**i for i in range(4)]
        self.pooled = nn.ModuleList(conv_bn_relu(widths[3], head, 1) for _ in range(4))
        self.bottleneck = conv_bn_relu(widths[3] + 4 * head, head, 3)
        self.laterals = nn.ModuleList(conv_bn_relu(w, head, 1) for w in widths[:3])
        self.fpn = nn.ModuleList(conv_bn_relu(head, head, 3) for _ in range(3))
        self.fpn_bottleneck = conv_bn_relu(4 * head, head, 3)
        self.conv_seg = nn.Conv2d(head, CLASSES, 1)
        self.auxiliary = nn.Sequential(
            conv_bn_relu(widths[2], auxiliary, 3), nn.Conv2d(auxiliary, CLASSES, 1)
        )

    def forward(self, images):
        features = self.backbone(images)
        top, hw = features[3], features[3].shape[2:]
        pooled = [
            resize(conv(F.adaptive_avg_pool2d(top, scale)), hw)
            for scale, conv in zip((1, 2, 3, 6), self.pooled, strict=True)
        ]
        sums = [self.bottleneck(torch.cat([top, *pooled], 1))]
        for feature, lateral in zip(features[2::-1], self.laterals[::-1], strict=True):
            x = lateral(feature)
            sums.insert(0, x + resize(sums[0], x.shape[2:]))
        maps = [conv(x) for conv, x in zip(self.fpn, sums[:3], strict=True)] + [sums[3]]
        hw = maps[0].shape[2:]
        x = self.fpn_bottleneck(torch.cat([resize(m, hw) for m in maps], 1))
        logits = self.conv_seg(x)
        return (logits, self.auxiliary(features[2])) if self.training else logits


# Module names here -> the original's names, for the parameters that are not called alike.
RENAMES = (
    ("backbone.stem1.conv", "backbone.patch_embed.conv1"),
    ("backbone.stem1.norm", "backbone.patch_embed.norm1.1"),
    ("backbone.stem2.conv", "backbone.patch_embed.conv2"),
    ("backbone.stem2.norm", "backbone.patch_embed.norm2.1"),
    *((f"backbone.norms.{i}.", f"backbone.levels.{i}.norm.0.") for i in range(4)),
    *((f"backbone.downs.{i}.conv", f"backbone.levels.{i}.downsample.conv") for i in range(3)),
    *((f"backbone.downs.{i}.norm", f"backbone.levels.{i}.downsample.norm.1") for i in range(3)),
    *(
        (f"backbone.stages.{i}.{j}.", f"backbone.levels.{i}.blocks.{j}.")
        for i in range(4)
        for j in range(17, -1, -1)
    ),
    (".norm1.weight", ".norm1.0.weight"),
    (".norm1.bias", ".norm1.0.bias"),
    (".norm2.weight", ".norm2.0.weight"),
    (".norm2.bias", ".norm2.0.bias"),
    ("auxiliary.0.0.", "auxiliary_head.convs.0.conv."),
    ("auxiliary.0.1.", "auxiliary_head.convs.0.bn."),
    ("auxiliary.1.", "auxiliary_head.conv_seg."),
    *((f"pooled.{i}.", f"decode_head.psp_modules.{i}.1.") for i in range(4)),
    *((f"laterals.{i}.", f"decode_head.lateral_convs.{i}.") for i in range(3)),
    *((f"fpn.{i}.", f"decode_head.fpn_convs.{i}.") for i in range(3)),
)


def original_name(name):
    for ours, theirs in RENAMES:
        name = name.replace(ours, theirs)
    if name.startswith(("bottleneck", "fpn_bottleneck", "conv_seg")):
        name = f"decode_head.{name}"
    if name.startswith("decode_head") and "conv_seg" not in name:
        module, index, leaf = name.rsplit(".", 2)
        name = f"{module}.{'conv' if index == '0' else 'bn'}.{leaf}"
        name = name.replace(".conv.conv.", ".conv.").replace(".bn.bn.", ".bn.")
    return name


def build(options):
    """Both models with the same weights, their optimizers, and a batch."""
    rng = np.random.default_rng(0)
    shape = (options.batch, options.height, options.width, 3)
    images = rng.standard_normal(shape).astype(np.float32)
    labels = rng.integers(0, 19, shape[:3])
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    config = cityscapes.get_config()
    backbone = config.model.backbone
    # Random numbers are no part of the comparison.
    backbone.drop_path = 0.0
    config.model.decode_head.dropout = config.model.auxiliary_head.dropout = 0.0
    theirs = UPerNet(backbone.channels, backbone.depths, backbone.groups)
    named = {original_name(k): v.numpy().copy() for k, v in theirs.state_dict().items()}
    variables = jax.tree.map(jnp.asarray, to_variables(named))
    return config, theirs, variables, images, labels


def jaxseg_calls(config, variables, images, labels):
    """Forward pass and train step of jaxseg; each returns when its result is there."""
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

    return {"forward": lambda: np.asarray(forward(variables, images)), "train_step": train}


def torch_calls(model, images, labels):
    """The same of PyTorch."""
    images, labels = torch.from_numpy(images), torch.from_numpy(labels)
    adamw = torch.optim.AdamW(model.parameters(), lr=6e-5, weight_decay=0.05)

    def forward():
        model.eval()
        with torch.no_grad():
            return model(images).permute(0, 2, 3, 1).numpy()

    def train():
        model.train()
        logits, auxiliary = model(images)
        hw = labels.shape[1:]
        loss = F.cross_entropy(resize(logits, hw), labels, ignore_index=losses.IGNORE)
        loss += 0.4 * F.cross_entropy(resize(auxiliary, hw), labels, ignore_index=losses.IGNORE)
        adamw.zero_grad()
        loss.backward()
        adamw.step()

    return {"forward": forward, "train_step": train}


def time_side(options):
    """The least seconds of the calls of one side, as JSON: what a child process does."""
    config, theirs, variables, images, labels = build(options)
    if options.side == "jaxseg":
        calls = jaxseg_calls(config, variables, images, labels)
    else:
        calls = torch_calls(theirs, images, labels)
    if options.batch == 1:  # batch norm of a pooled 1×1 map needs two images
        calls.pop("train_step")
    seconds = {}
    for name, call in calls.items():
        call()
        times = []
        for _ in range(options.rounds):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        seconds[name] = min(times)
    print(json.dumps(seconds))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("height", 512), ("width", 1024), ("batch", 1), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--side", choices=("jaxseg", "torch"), help="time this side only")
    options = parser.parse_args()
    if options.side:
        time_side(options)
        return

    config, theirs, variables, images, labels = build(options)
    expected = torch_calls(theirs, images, labels)["forward"]()
    actual = jaxseg_calls(config, variables, images, labels)["forward"]()
    difference = np.abs(actual - expected).max() / np.abs(expected).max()
    assert difference < 1e-4, difference

    seconds = {}
    for _ in range(options.turns):
        for side in ("jaxseg", "torch"):
            command = [sys.executable, *sys.argv, "--side", side]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            for name, taken in json.loads(output.splitlines()[-1]).items():
                times = seconds.setdefault(name, {})
                times[side] = min(taken, times.get(side, taken))
    print(
        json.dumps(
            {
                "model": "upernet_internimage_t",
                "shape": images.shape,
                "seconds": seconds,
                "speedup": {k: v["torch"] / v["jaxseg"] for k, v in seconds.items()},
                "largest_relative_difference": float(difference),
                "threads": os.cpu_count(),
                "processor": platform.processor() or platform.machine(),
                "versions": {"jax": jax.__version__, "torch": torch.__version__},
                "date": datetime.date.today().isoformat(),
            }
        )
    )


if __name__ == "__main__":
    main()
