"""The launchers: what they would run, by their dry run."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from support.runs import ROOT

SETTINGS = {"DRY_RUN": "1", "NAME": "seg", "CLUSTER": "seg", "ZONE": "z", "BUCKET": "b"}
ARGUMENTS = ["--config", "configs/cityscapes.py", "--config.data.crop_hw=(512, 512)"]
QUOTED = r"jaxseg.main --config configs/cityscapes.py --config.data.crop_hw=\(512\,\ 512\)"


def dry_run(script, *arguments):
    command = ["bash", ROOT / "launch" / script, *arguments]
    done = subprocess.run(
        command, env=os.environ | SETTINGS, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def as_the_remote_shell_sees_it(line):
    """The last word of a printed command, unquoted by a shell once."""
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True
    )
    return words.stdout.splitlines()[-1]


def test_shell_scripts_are_sound():
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent)
    scripts = sorted((ROOT / "launch").glob("*.sh"))
    assert len(scripts) == 3
    subprocess.run([shellcheck, *scripts], check=True)


def test_the_dockerfile_is_sound_and_copies_what_the_package_is_built_from():
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    dockerfile = ROOT / "launch" / "Dockerfile"
    subprocess.run([hadolint, dockerfile], check=True)
    copied = {
        name
        for line in dockerfile.read_text().splitlines()
        if line.startswith("COPY")
        for name in line.split()[1:-1]
    }
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]
    metadata = {"pyproject.toml", "README.md", "LICENSE"}
    assert copied == {*metadata, *wheel["packages"], *wheel["force-include"]}


def test_a_pod_is_created_installed_run_fetched_and_deleted():
    (created,) = dry_run("tpu_vm.sh", "create", "v5litepod-16")
    assert created.startswith("gcloud compute tpus tpu-vm create seg --zone z")
    archive, copied, *installed = dry_run("tpu_vm.sh", "install")
    assert archive.startswith("git archive")
    assert "scp" in copied
    assert "jaxseg[tpu]" in "".join(installed)
    (line,) = dry_run("tpu_vm.sh", "run", *ARGUMENTS)
    assert "--worker all" in line
    assert as_the_remote_shell_sees_it(line).endswith(QUOTED)
    assert "gs://b/runs/first" in dry_run("tpu_vm.sh", "fetch", "runs/first")[-1]
    assert "delete seg" in dry_run("tpu_vm.sh", "delete")[0]


def test_slices_on_gke_run_the_same_command():
    (line,) = dry_run("gke_xpk.sh", "run", "first", *ARGUMENTS)
    assert "--workload first" in line
    assert as_the_remote_shell_sees_it(line).endswith(QUOTED)


def test_slurm_starts_a_process_a_gpu():
    (line,) = dry_run("slurm.sh", *ARGUMENTS)
    assert line.startswith("srun")
    assert line.strip().endswith(QUOTED)


@pytest.mark.parametrize("settings", [{}, SETTINGS])
@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("tpu_vm.sh", ()),
        ("tpu_vm.sh", ("run",)),
        ("gke_xpk.sh", ()),
        ("gke_xpk.sh", ("run",)),
        ("slurm.sh", ()),
    ],
)
def test_without_what_it_needs_the_usage_is_printed(script, settings, arguments):
    done = subprocess.run(
        ["bash", ROOT / "launch" / script, *arguments],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"launch/{script} " in done.stdout
