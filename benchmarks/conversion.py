"""Measures time and memory of converting a checkpoint the size of UPerNet InternImage-XL.

python benchmarks/conversion.py [--config configs/cityscapes.py:upernet_internimage_xl]

The program writes a file with the weights and their moving averages (twice the model) and converts
it in a separate process. It prints as JSON the time, the peak of that process's resident memory and
the size of the model. The peak includes the mapped parts of the file.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import sys
import tempfile
import time

import psutil

from converters import verify
from converters.torch_files import torch_writer
from jaxseg.config import load_config
from jaxseg.reporting.manifest import versions


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/cityscapes.py:upernet_internimage_xl")
    config = parser.parse_args().config
    with tempfile.TemporaryDirectory() as folder:
        file, output = pathlib.Path(folder) / "model.pth", pathlib.Path(folder) / "run"
        model_bytes = write_checkpoint(file, config)
        arguments = ["--checkpoint", str(file), "--config", config, "--output", str(output)]
        started = time.perf_counter()
        process = psutil.Popen([sys.executable, "-m", "converters.convert", *arguments])
        peak = 0
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                peak = max(peak, process.memory_info().rss)
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        file_bytes = file.stat().st_size
    result = {
        "config": config,
        "seconds": round(seconds, 1),
        "model_gb": round(model_bytes / 1e9, 2),
        "file_gb": round(file_bytes / 1e9, 2),
        "peak_resident_gb": round(peak / 1e9, 2),
        "peak_over_model": round(peak / model_bytes, 2),
        "exit_status": process.returncode,
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "date": datetime.date.today().isoformat(),
        **versions(),
    }
    print(json.dumps(result, indent=1))


def write_checkpoint(file: pathlib.Path, config: str) -> int:
    """Writes weights and their moving averages as mmcv does; returns the weights' bytes."""
    tensors = verify.filled_state_dict(load_config(config))
    averages = {f"ema_{name.replace('.', '_')}": value for name, value in tensors.items()}
    torch_writer.write_torch_file(file, tensors | averages)
    return sum(tensor.nbytes for tensor in tensors.values())


if __name__ == "__main__":
    main()
