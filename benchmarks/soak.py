"""Kills a training run again and again; it ends with the bits of a run that nobody disturbed.

    python benchmarks/soak.py [--kills 100] [--processes 1] [--json FILE]

Moments follow each other: within the first second, while the step is compiled, during steps, a save
and an evaluation. SIGKILL and SIGTERM alternate. With several processes, one of them gets the
signal, and the others end by themselves. Every start resumes the same work directory.
"""

import argparse
import collections
import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

# The checkpoints are of two devices.
os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxseg.data.synthetic.writer import write_street_scenes
from jaxseg.distributed.processes import START_SECONDS
from jaxseg.reporting.manifest import versions

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = "benchmarks/tiny_recipes.py:cityscapes.upernet_internimage_t"
MOMENTS = ("first second", "compilation", "step", "save", "evaluation")
STEPS_PER_KILL = 6
SAVE, EVALUATE = 4, 10
PATIENCE_SECONDS = 120
END_SECONDS = START_SECONDS + 60  # a process waits so long for one that never came


def command(workdir: pathlib.Path, scenes: pathlib.Path, steps: int) -> list[str]:
    """Returns the command that starts or resumes the run."""
    settings = {
        "data.root": scenes,
        "data.workers": 1,
        "batch_size": 4,
        "steps": steps,
        "log_steps": 1,
        "checkpoint.every_steps": SAVE,
        "eval.every_steps": EVALUATE,
        "eval.pictures": 1,
        "init": "",
    }
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    program = [sys.executable, "-m", "jaxseg.main", "--config", RECIPE]
    return [*program, "--workdir", str(workdir), *overrides]


class Run:
    """One start of the run, in one or several processes, whose output is watched."""

    def __init__(self, call: list[str], processes: int, cache: pathlib.Path):
        devices = 2 // processes
        flags = f"--xla_force_host_platform_device_count={devices}"
        flags += " --xla_backend_optimization_level=0"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        environment |= {"JAXSEG_COMPILE_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
        if processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
        self.lines: list[str] = []
        self.processes = [
            subprocess.Popen(
                call,
                cwd=ROOT,
                env=environment | {"JAX_PROCESS_ID": str(index)} if processes > 1 else environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(processes)
        ]
        self._readers = [
            threading.Thread(target=self._read, args=(process,), daemon=True)
            for process in self.processes
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, process):
        for line in process.stdout:
            self.lines.append(line)

    def running(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def end(self) -> list[int]:
        """Waits for all processes, and returns how they ended."""
        try:
            return [process.wait(END_SECONDS) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
            for reader in self._readers:
                reader.join(10)


def wait_for(moment: str, run: Run, workdir: pathlib.Path, rng: random.Random):
    """Waits until the moment to kill has come, or the run has ended."""
    begun = time.monotonic()
    before = set(workdir.glob("predictions/*"))
    steps = rng.randint(1, STEPS_PER_KILL)

    def come():
        if moment == "first second":
            return time.monotonic() - begun > delay
        if moment == "compilation":
            return any(line.startswith("start ") for line in run.lines)
        if moment == "save":
            return any(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*"))
        if moment == "evaluation":
            return bool(set(workdir.glob("predictions/*")) - before)
        return sum(line.startswith("step ") for line in run.lines) >= steps

    delay = rng.random()
    while run.running() and not come() and time.monotonic() - begun < PATIENCE_SECONDS:
        time.sleep(0.002)
    time.sleep({"compilation": 2 * rng.random(), "step": 0.2 * rng.random()}.get(moment, 0))


def bits(workdir: pathlib.Path) -> str:
    """Returns a hash of everything in the last checkpoint."""
    last = max(workdir.glob("checkpoints/[0-9]*"), key=lambda path: int(path.name))
    # Of several processes, a checkpoint names devices that this process does not have.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    stored = ocp.checkpointables_metadata(last).metadata
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        {part: stored[part] for part in ("model", "optimizer")},
    )
    state = ocp.load_checkpointables(last, wanted)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    digest = hashlib.sha256()
    for path, leaf in sorted(leaves, key=lambda item: jax.tree_util.keystr(item[0])):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def recorded(workdir: pathlib.Path) -> list:
    """Returns the loss of every step and the scores of every evaluation."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["kind"], line.get("loss"), line.get("mIoU")) for line in lines]


def soak(folder: pathlib.Path, kills: int, processes: int, seed: int) -> dict:
    """Kills a run, lets it end, and compares it with one that was left alone."""
    rng = random.Random(seed)
    scenes = write_street_scenes(folder / "scenes", train=6, val=2, image_hw=(64, 128), seed=0)
    steps = EVALUATE * (1 + kills * STEPS_PER_KILL // EVALUATE)
    whole, killed, cache = folder / "whole", folder / "killed", folder / "compiled"
    left_alone = Run(command(whole, scenes, steps), processes, cache)
    while left_alone.running():
        time.sleep(0.5)
    assert not any(left_alone.end()), "".join(left_alone.lines[-20:])
    counts, others = collections.Counter(), []
    begun = time.monotonic()
    number = 0
    while number < kills:
        moment = MOMENTS[number % len(MOMENTS)]
        kind = (signal.SIGKILL, signal.SIGTERM)[number // len(MOMENTS) % 2]
        run = Run(command(killed, scenes, steps), processes, cache)
        wait_for(moment, run, killed, rng)
        if not run.running():
            ends = run.end()
            if not any(ends):
                break  # the run has ended before all kills
            others.append(f"{moment}: ended by itself with {ends}: {''.join(run.lines[-5:])}")
            number += 1
            continue
        with contextlib.suppress(ProcessLookupError):
            rng.choice(run.processes).send_signal(kind)
        try:
            run.end()
        except subprocess.TimeoutExpired:
            others.append(f"{moment}, {kind.name}: did not end in {END_SECONDS} s")
        counts[f"{moment}, {kind.name}"] += 1
        number += 1
        print(f"{number}/{kills} {moment} {kind.name}", flush=True)
    run = Run(command(killed, scenes, steps), processes, cache)
    while run.running():
        time.sleep(0.5)
    ends = run.end()
    return {
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "processes": processes,
        "steps": steps,
        "kills": dict(sorted(counts.items())),
        "seconds": round(time.monotonic() - begun),
        "same_bits": not any(ends) and bits(killed) == bits(whole),
        "same_records": not any(ends) and recorded(killed) == recorded(whole),
        "others": others,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path, help="write the result to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(pathlib.Path(folder), options.kills, options.processes, options.seed)
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(not (result["same_bits"] and result["same_records"] and not result["others"]))


if __name__ == "__main__":
    main()
