"""Makes the files of this folder: python tests/torch_files/make.py, with torch and safetensors.

`expected.npz` holds what torch itself says of every tensor in them, by its path in the object;
bfloat16 as float32, which holds it exactly, and the dtypes' names beside.
"""

import argparse
import collections
import json
import pathlib

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent
WRITERS = {
    "zip.pth": lambda it, path: torch.save(it, path),
    "legacy.pth": lambda it, path: torch.save(it, path, _use_new_zipfile_serialization=False),
}


def weights():
    """Every dtype and every kind of view."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    shared = torch.arange(10, dtype=torch.float32)
    tensors = {
        dtype: (base * 20).to(getattr(torch, dtype))
        for dtype in ("float64", "float32", "float16", "bfloat16")
        + ("int64", "int32", "int16", "int8", "bool")
    }
    tensors |= {
        "uint8": torch.arange(5, dtype=torch.uint8),
        "uint16": torch.arange(5).to(torch.uint16),
        "transposed": base.t(),
        "channels_last": torch.randn(2, 3, 2, 2, generator=generator).to(
            memory_format=torch.channels_last
        ),
        "offset": base[1:, 2],
        "every_second": base[::2, ::3],
        "expanded": torch.ones(3, 1).expand(3, 4),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "shared.whole": shared,
        "shared.part": shared[3:7],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "buffer": torch.nn.Buffer(torch.zeros(2)),
    }
    return collections.OrderedDict(tensors)


def checkpoint():
    """The weights, and beside them what training programs leave there."""
    layer = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "meta": {
            "epoch": 12,
            "iter": 160000,
            "mmcv_version": "1.5.0",
            "config": "model = dict(type='EncoderDecoder')\n",
            "CLASSES": ("road", "sidewalk", "straße"),
            "PALETTE": [[128, 64, 128], [244, 35, 232], [70, 70, 70]],
        },
        "state_dict": weights(),
        "layer": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": {"milestones": collections.Counter([8, 11])},
        "args": argparse.Namespace(lr=0.1, device=torch.device("cuda", 1), sizes=torch.Size([2])),
        "numpy": {
            "best": np.float64(82.5),
            "count": np.int64(7),
            "matrix": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "names": np.array(["a", "bc"]),
            "none": np.zeros((0, 2)),
        },
        "plain": {
            "dtype": torch.float16,
            "bytes": b"\x00\xff",
            "set": {1, 2},
            "default": collections.defaultdict(list, {"a": [1]}),
            "numbers": [0, -1, 255, 65536, 2**40, -(2**70), 0.5, True, None],
        },
    }


def tensors_of(obj, path=()):
    """Every tensor in nested dicts and lists, by its path."""
    if isinstance(obj, torch.Tensor):
        yield "/".join(path), obj.detach()
    elif isinstance(obj, dict | list | tuple):
        for key, value in obj.items() if isinstance(obj, dict) else enumerate(obj):
            yield from tensors_of(value, (*path, str(key)))


def as_numpy(tensor):
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def main():
    from safetensors.torch import save_file

    torch.manual_seed(0)
    obj = checkpoint()
    for name, write in WRITERS.items():
        write(obj, FOLDER / name)
    plain = {name: tensor.detach().clone().contiguous() for name, tensor in weights().items()}
    save_file(plain, FOLDER / "tensors.safetensors", metadata={"format": "pt"})

    # A look back at the written file: what torch reads, not what it was given.
    loaded = torch.load(FOLDER / "zip.pth", weights_only=False)
    tensors = dict(tensors_of(loaded))
    dtypes = {path: str(it.dtype).removeprefix("torch.") for path, it in tensors.items()}
    arrays = {path: as_numpy(it) for path, it in tensors.items()}
    np.savez_compressed(FOLDER / "expected.npz", dtypes=json.dumps(dtypes), **arrays)


if __name__ == "__main__":
    main()
