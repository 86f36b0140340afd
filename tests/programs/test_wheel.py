"""The installed package, in folders that have packages of the same names as its own."""

import os
import subprocess
import sys

import pytest

from support.runs import ROOT, XLA_FLAGS


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel, as pip installs it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    assert (target / "jaxseg/configs/cityscapes.py").is_file()
    assert not (target / "configs").exists()
    return target


FOLDERS = [
    pytest.param("an empty folder", marks=pytest.mark.full),
    "a folder with packages of these names",
]


@pytest.fixture(params=FOLDERS)
def call(request, installed, tmp_path):
    """Runs a command of the installed package in a folder of the user's."""
    if request.param != "an empty folder":
        for name in ("configs", "converters"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the user's own')\n")
        (tmp_path / "configs.py").write_text("raise RuntimeError('the user's own')\n")

    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": str(installed), "XLA_FLAGS": XLA_FLAGS}
        environment["JAXSEG_COMPILE_CACHE"] = os.environ["JAXSEG_TEST_CACHE"]
        return subprocess.run(
            arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_published_models_are_listed(call, installed):
    done = call(sys.executable, installed / "bin/jaxseg", "zoo", "*internimage_t*cityscapes*")
    assert done.returncode == 0, done.stderr
    assert "upernet_internimage_t_512x1024_160k_cityscapes" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "jaxseg", "show", "--config", "configs/ade20k.py:upernet_deit_adapter_t"),
        ("-m", "jaxseg.main", "--config", "configs/cityscapes.py", "--mode", "show"),
    ],
    ids=["jaxseg show", "python -m jaxseg.main"],
)
def test_a_published_recipe_is_shown(call, command):
    done = call(sys.executable, *command)
    assert "parameters" in done.stdout, done.stderr
    assert "does not exist" in done.stderr  # the dataset, which is looked at last


def test_the_converter_is_the_package_s_own(call):
    done = call(sys.executable, "-m", "jaxseg", "convert", "--help")
    assert done.returncode == 0, done.stderr
    assert "jaxseg convert" in done.stdout


def test_training_starts_from_weights(call, command, tmp_path):
    trained = command("first", steps=1, **{"eval.every_steps": 100})["args"][3:]
    done = call(sys.executable, "-m", "jaxseg", "train", *trained)
    assert done.returncode == 0, done.stderr
    again = command("second", steps=1, **{"eval.every_steps": 100, "init": "first"})["args"][3:]
    done = call(sys.executable, "-m", "jaxseg", "train", *again)
    assert done.returncode == 0, done.stderr
    assert "tensors of first" in done.stdout
