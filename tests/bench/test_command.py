"""The command `jaxseg bench`: its options, its files, and what it passes on."""

import json
import os

import jax
import pytest

from jaxseg.__main__ import main
from jaxseg.bench import pipeline, steps
from jaxseg.bench.measurement import Measurement
from jaxseg.bench.timing import summarize
from pallas_kernels import bench


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """One process with the environment of the tests, which have started JAX already."""
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # which programs change


@pytest.fixture
def measured(monkeypatch):
    """What was asked to be measured; nothing is."""
    asked = {}

    def pretend(what, recipe, overrides):
        return Measurement(
            what=what,
            recipe=recipe,
            overrides=list(overrides),
            device="cpu",
            devices=1,
            batch=4,
            image_hw=(64, 64),
            images_per_second=40.0,
            seconds=summarize([0.1]),
            versions={"python": "3", "jax": jax.__version__, "jaxlib": "0"},
        )

    def step(subject, images_per_device=None):
        asked.update(subject=subject, images_per_device=images_per_device)
        return pretend(subject.what, subject.recipe, subject.overrides)

    def batches(config, *, recipe, overrides, **options):
        asked.update(options)
        return pretend("data", recipe, overrides)

    monkeypatch.setattr(steps, "measure_step", step)
    monkeypatch.setattr(steps, "measure_largest", lambda subject: step(subject, 0))
    monkeypatch.setattr(pipeline, "measure_pipeline", batches)
    return asked


def test_a_step_is_measured_as_the_options_say(measured, config_file, tmp_path, capsys):
    file = tmp_path / "out" / "train.json"
    options = ["--batch", "4", "--steps", "2", "--warmup", "0", "--dtype", "bfloat16"]
    settings = ["--config.optim.accumulation=2", "--config.data.root=here"]
    recipe = ["--config", f"{config_file}:tiny"]
    main(["bench", "train", *recipe, *options, "--json", str(file), *settings])
    subject = measured["subject"]
    assert (subject.what, subject.warmup, subject.steps) == ("train", 0, 2)
    assert measured["images_per_device"] == 4
    assert subject.config.model.dtype == "bfloat16"
    assert subject.config.optim.accumulation == 2
    assert "train of tiny:tiny, optim.accumulation=2 on 1 x cpu" in capsys.readouterr().out
    assert json.loads(file.read_text())["overrides"] == ["optim.accumulation=2"]  # not the paths


def test_the_recipe_s_own_batch_is_the_default_and_0_is_the_largest(measured, config_file):
    main(["bench", "infer", "--config", f"{config_file}:tiny"])
    assert (measured["subject"].what, measured["images_per_device"]) == ("infer", None)
    main(["bench", "infer", "--config", f"{config_file}:tiny", "--batch", "0"])
    assert measured["images_per_device"] == 0


def test_the_pipeline_is_measured_beside_a_step(measured, config_file, capsys):
    recipe = ["--config", f"{config_file}:tiny"]
    main(["bench", "data", *recipe, "--batch", "6", "--step-seconds", "0.5"])
    assert measured == {"batch": 6, "step_seconds": 0.5, "warmup": 3, "steps": 20}
    assert "data of tiny:tiny" in capsys.readouterr().out


def test_files_become_a_table(measured, config_file, tmp_path, capsys):
    files = [str(tmp_path / name) for name in ("train.json", "infer.json")]
    for file in files:
        what = file.removesuffix(".json").rpartition("/")[2]
        main(["bench", what, "--config", f"{config_file}:tiny", "--json", file])
    capsys.readouterr()
    main(["bench", "table", *files])
    rows = [line for line in capsys.readouterr().out.splitlines() if "`tiny:tiny`" in line]
    assert [row.split(" | ")[0] for row in rows] == ["| train", "| infer"]


def test_kernels_get_what_follows(monkeypatch):
    given = []
    monkeypatch.setattr(bench, "main", given.append)
    main(["bench", "kernels", "--shapes", "internimage_t *", "--help"])
    assert given == [["--shapes", "internimage_t *", "--help"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config", "FILE", "8"], "unexpected argument '8'; a setting is --config.KEY"),
        (["train", "--config", "FILE", "--config.oh=1"], "no such key: 'oh'"),
        (["infer", "--config", "none.py"], "none.py: no such file"),
        (["table", "none.json"], "cannot read none.json"),
        (["table", "none.json", "--batch=2"], "unexpected argument '--batch=2'"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(arguments, message, config_file):
    arguments = [config_file if argument == "FILE" else argument for argument in arguments]
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    assert message in str(end.value)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--shapes", "*"],
        ["train"],
        ["train", "--config", "a", "--steps", "0"],
        ["data", "--config", "a", "--step-seconds", "-1"],
    ],
)
def test_wrong_options_show_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    assert end.value.code == 2
    assert "usage: jaxseg bench" in capsys.readouterr().err
