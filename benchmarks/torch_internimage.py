"""UPerNet InternImage in PyTorch, written from the description of the model, with a benchmark.

    python benchmarks/torch_internimage.py [--hw 512 1024 --batch 8 --steps 10] [--json FILE]

The program times the forward pass and the train step of InternImage-T with random images. It uses
bfloat16 (autocast) on a GPU, or float32 on the CPU.

The deformable convolution uses grid_sample, the only form that PyTorch has without a compiled CUDA
operator. `original_state` names the weights as the converter expects them.

PyTorch comes with its own CUDA libraries. On a machine without network, carry the wheel of torch
for its Python and the wheels that `pip download torch` puts next to it, about 5 GB.
"""

import argparse
import datetime
import json
import pathlib
import platform
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 150


class ChannelsLastNorm(nn.LayerNorm):
    def __init__(self, channels):
        super().__init__(channels, eps=1e-6)


def dcnv3(value, offset, mask, groups):
    """Sums samples at 3 × 3 points around each pixel, channels last."""
    n, h, w, c = value.shape
    offset = offset.view(n, h, w, groups, 9, 2)
    steps = torch.tensor([-1.0, 0.0, 1.0], device=value.device)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).view(9, 2)
    rows, columns = torch.meshgrid(
        *(torch.arange(size, device=value.device) for size in (h, w)), indexing="ij"
    )
    place = torch.stack([columns, rows], -1).view(1, h, w, 1, 1, 2)
    size = torch.tensor([w, h], device=value.device)
    position = (place + grid + offset + 0.5) * 2 / size - 1
    # [n·g, h·w, 9, 2], sampled from [n·g, c/g, h, w]
    position = position.permute(0, 3, 1, 2, 4, 5).reshape(n * groups, h * w, 9, 2)
    planes = value.view(n, h, w, groups, -1).permute(0, 3, 4, 1, 2).reshape(n * groups, -1, h, w)
    samples = F.grid_sample(planes, position.to(planes.dtype), align_corners=False)
    weight = mask.view(n, h * w, groups, 9).transpose(1, 2).reshape(n * groups, 1, h * w, 9)
    return (samples * weight).sum(-1).view(n, c, h, w).permute(0, 2, 3, 1)


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
        query = self.dw_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        query = F.gelu(self.dw_norm(query))
        mask = self.mask(query).unflatten(-1, (self.groups, 9)).softmax(-1)
        sampled = dcnv3(self.input_proj(x), self.offset(query), mask, self.groups)
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


# Module names here -> the original's names, for the parameters whose names differ.
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


def original_state(model):
    """Returns the state of `UPerNet` as numpy arrays under the original's names."""
    return {original_name(k): v.numpy().copy() for k, v in model.state_dict().items()}


T = {"channels": 64, "depths": (4, 4, 18, 4), "groups": (4, 8, 16, 32)}
TINY = {"channels": 16, "depths": (1, 1, 1, 1), "groups": (1, 2, 4, 8)}
WARM_UP = 3


def median_seconds(call, steps, device):
    """Returns the median time of a call, after `WARM_UP` calls that are not counted."""
    times = []
    for _ in range(WARM_UP + steps):
        begun = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[WARM_UP:])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hw", type=int, nargs=2, default=(512, 1024))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the program")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = UPerNet(**(TINY if options.tiny else T)).to(device)
    images = torch.randn(options.batch, 3, *options.hw, device=device)
    labels = torch.randint(0, 19, (options.batch, *options.hw), device=device)
    adamw = torch.optim.AdamW(model.parameters(), lr=6e-5, weight_decay=0.05)
    low_precision = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")

    def forward():
        model.eval()
        with torch.no_grad(), low_precision:
            model(images)

    def train_step():
        model.train()
        with low_precision:
            maps = [resize(x, labels.shape[1:]) for x in model(images)]
            loss, auxiliary = (F.cross_entropy(x.float(), labels) for x in maps)
        adamw.zero_grad()
        (loss + 0.4 * auxiliary).backward()
        adamw.step()

    calls = {"forward": forward, "train_step": train_step}
    seconds = {k: median_seconds(call, options.steps, device) for k, call in calls.items()}
    result = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "batch": options.batch,
        "hw": options.hw,
        "tiny": options.tiny,
        "milliseconds": {k: round(1e3 * taken, 3) for k, taken in seconds.items()},
        "images_per_second": {k: round(options.batch / taken, 2) for k, taken in seconds.items()},
        "date": datetime.date.today().isoformat(),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
    }
    if device == "cuda":
        result["peak_gigabytes"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
