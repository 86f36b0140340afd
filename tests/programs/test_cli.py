"""The command `jaxseg`, and what importing the package does: nothing."""

import importlib
import importlib.metadata
import subprocess
import sys

import pytest

import jaxseg
from jaxseg import __main__ as cli
from jaxseg.config import override_config
from support.runs import ROOT

IMPORT = """
import os, sys, time
before = dict(os.environ), set(sys.modules)
started = time.perf_counter()
import jaxseg
assert time.perf_counter() - started < 0.05
assert dict(os.environ) == before[0]
print(*sorted(set(sys.modules) - before[1] - set(sys.stdlib_module_names)))
"""


def test_importing_the_package_imports_nothing_and_changes_nothing():
    command = [sys.executable, "-c", IMPORT]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name.partition(".")[0] for name in found.split()} <= sys.stdlib_module_names | {
        "jaxseg"
    }


@pytest.mark.parametrize("name", jaxseg.__all__)
def test_what_the_package_offers_is_there(name):
    assert name in dir(jaxseg)
    assert getattr(jaxseg, name).__doc__


def test_an_unknown_attribute_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        jaxseg.Segmentor  # noqa: B018


def test_version_is_that_of_the_distribution(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out.strip() == importlib.metadata.version("jaxseg")
    assert jaxseg.__version__ == importlib.metadata.version("jaxseg")


def test_help_lists_every_command(capsys):
    cli.main([])
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in cli.COMMANDS)


def test_an_unknown_command_is_refused_with_those_there_are():
    with pytest.raises(SystemExit, match=r"no command 'trian'(.|\n)*train a recipe"):
        cli.main(["trian"])


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_runs_the_program_of_its_module(name, monkeypatch):
    command = cli.COMMANDS[name]
    given = []
    monkeypatch.setattr(importlib.import_module(command.module), "main", given.append)
    cli.main([name, "--flag", "value"])
    assert given == [[*command.arguments, "--flag", "value"]]


@pytest.mark.parametrize("argument", ["steps=3", "config.steps=3", "3"])
def test_an_argument_that_is_no_setting_is_refused(argument):
    message = rf"unexpected argument '{argument}'; a setting is --config\.KEY=VALUE"
    with pytest.raises(jaxseg.JaxsegError, match=message):
        jaxseg.load_config("cityscapes:upernet_internimage_t", [argument])
    config = jaxseg.load_config("cityscapes:upernet_internimage_t")
    with pytest.raises(jaxseg.JaxsegError, match=message):
        override_config(config, [argument])


def test_a_recipe_is_found_by_the_name_of_its_dataset():
    short = jaxseg.load_config("cityscapes:upernet_internimage_t", {"data.root": "here"})
    long = jaxseg.load_config("configs/cityscapes.py:upernet_internimage_t")
    assert short.data.root == "here"
    short.data.root = long.data.root
    assert short == long
