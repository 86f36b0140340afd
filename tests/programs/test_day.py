"""The day of measurements on a GPU or TPU: its parts, tried with tiny sizes on the CPU."""

import importlib
import json
import os
import resource
import subprocess

import jax
import pytest

from jaxseg.distributed.sharding import check_batch, make_mesh
from support.runs import ROOT

SCRIPTS = {"gpu": "benchmarks/gpu_day.sh", "tpu": "benchmarks/tpu_day.sh"}


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("day")


def day(platform, *arguments):
    """The exit status of a dry run, and what it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA"))}
    done = subprocess.run(
        [ROOT / SCRIPTS[platform], "--dry-run", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def parts(platform, *arguments):
    status, output = day(platform, "--list", *arguments)
    assert status == 0, output
    return output.split()


def test_a_day_that_was_interrupted_goes_on_where_it_stopped(tmp_path):
    chosen = ("bench_dcnv3", "autotune_dcnv3", "torch_internimage_t")
    (tmp_path / "autotune_dcnv3.json").write_text('{"rows": []}')
    (tmp_path / "bench_dcnv3.part").write_text("half of")
    arguments = ("--output", str(tmp_path), "--only", *chosen)
    status, output = day("gpu", *arguments)
    assert status == 0, output
    lines = {line.split()[0]: line for line in output.splitlines() if line.startswith(chosen)}
    assert "there already" in lines["autotune_dcnv3"]
    assert "done" in lines["bench_dcnv3"]
    rows = json.loads((tmp_path / "bench_dcnv3.json").read_text())["rows"]
    assert {row["direction"] for row in rows} == {"forward", "backward"}
    before = (tmp_path / "bench_dcnv3.json").stat().st_mtime_ns
    status, output = day("gpu", *arguments)
    assert status == 0
    assert output.count("there already") == 2  # what was skipped is tried again
    assert (tmp_path / "bench_dcnv3.json").stat().st_mtime_ns == before


def test_a_recipe_is_timed(tmp_path):
    name = "infer_internimage_t"
    status, output = day("tpu", "--output", str(tmp_path), "--only", name)
    assert status == 0, output
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["images_per_second"] == found["batch"] / found["seconds"]["p50"]
    assert found["versions"]["jax"]
    row = "| infer | `tiny_recipes:upernet_internimage_t` | 1 x cpu | 2 | 64 x 64 | float32 |"
    assert row in (tmp_path / "README.md").read_text()


def test_an_unknown_part_is_refused(tmp_path):
    status, output = day("gpu", "--output", str(tmp_path), "--only", "train_internimage_x")
    assert status == 1
    assert "no such part: train_internimage_x" in output


def test_best_parts_come_first_on_both_platforms():
    for platform in SCRIPTS:
        assert parts(platform)[:3] == ["selftest", "kernel_tests", "train_internimage_t_8"]
    assert set(parts("gpu")) - set(parts("tpu")) == {
        "autotune_dcnv3",
        "autotune_ms_deform_attn",
        "torch_internimage_t",
    }


@pytest.mark.full
@pytest.mark.parametrize("platform", SCRIPTS)
def test_a_dry_run_makes_every_file(platform, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    status, output = day(platform, "--output", str(tmp_path))
    assert status == 0, output
    # Three minutes of two cores. The time on the clock depends on what runs beside.
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 360
    expected = {f"{name}.json" for name in parts(platform)} | {"README.md"}
    expected |= {f"{name}.log" for name in parts(platform)} | {"compiled"}
    assert {file.name for file in tmp_path.iterdir()} == expected


def test_a_part_that_failed_is_in_the_table(module, tmp_path):
    text = module.table(tmp_path, {"bench_dcnv3": "exit status 1: ValueError: no such shape"})
    assert "- bench_dcnv3: exit status 1: ValueError: no such shape" in text.splitlines()


@pytest.mark.parametrize("platform", SCRIPTS)
def test_every_batch_is_one_that_can_be_trained(module, platform):
    mesh = make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1])
    batches = [
        int(part.arguments[part.arguments.index("--batch") + 1])
        for part in module.parts(platform, tiny=False)
        if "train" in part.arguments or "benchmarks/top_kernels.py" in part.arguments
    ]
    assert len(batches) == 9
    for batch in batches:
        check_batch(batch or 8, 1, mesh)  # 0 is the largest that fits, from 8 on
