"""Configs: finding a file, loading it with overrides, and resolving what follows from the data."""

import contextlib
import importlib.util
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from jaxseg.errors import ConfigError
from jaxseg.recipes import class_list

HEADS = ("decode_head", "auxiliary_head")
# How ml_collections refuses an override of a part that the recipe does not have.
OF_NOTHING = re.compile(r'Override (\S+) can not be applied because field "(\w+)" is None')


def find_config(argument: str) -> str:
    """FILE[:VARIANT] with the file found here or beside the installed package.

    Raises:
      ConfigError: where there is no such file, with those that are installed.
    """
    file, colon, variant = argument.partition(":")
    installed = pathlib.Path(
        next(iter(importlib.util.find_spec("configs").submodule_search_locations))
    )
    for candidate in (pathlib.Path(file), installed.parent / file):
        if candidate.is_file():
            return f"{candidate}{colon}{variant}"
    recipes = (path for path in installed.glob("*.py") if "def get_config" in path.read_text())
    names = sorted(f"configs/{path.name}" for path in recipes)
    raise ConfigError(f"--config {file}: no such file; installed are {', '.join(names)}")


@contextlib.contextmanager
def readable_errors():
    """Turns what absl and ml_collections raise for a bad flag, config or override into ConfigError.

    That is, into a message that names the flag, the variant or the key.
    """
    try:
        yield
    # An override of a key that the config does not have; a KeyError where others follow it.
    except (AttributeError, KeyError) as error:
        text = str(error).replace("\\n", "\n").replace("\\'", "'").strip("\"'")
        key, *hint = text.split("\n")
        name = key.strip("'")
        raise ConfigError(
            ". ".join([f"--config.KEY=VALUE: no such key: '{name}'", *hint])
        ) from error
    except ValueError as error:
        if not (found := OF_NOTHING.match(str(error))):
            raise
        raise ConfigError(f"--config.{found[1]}: there is no {found[2]} in this recipe") from error
    except flags.Error as error:  # the last line is what the config file raised
        message = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(re.sub(r"^\w+Error: ", "", message)) from error


def last_of_each(arguments: Sequence[str]) -> list[str]:
    """The arguments without every `--config.KEY=VALUE` that a later one of that key replaces.

    absl joins the values of a tuple that is given twice.
    """
    given = {argument.partition("=")[0]: i for i, argument in enumerate(arguments)}
    return [
        argument
        for i, argument in enumerate(arguments)
        if not argument.startswith("--config.") or given[argument.partition("=")[0]] == i
    ]


def load_config(argument: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """The config of FILE[:VARIANT] with `--config.KEY=VALUE` overrides applied.

    Raises:
      ConfigError: for a file, variant or key that does not exist, or a value of the wrong type.
    """
    arguments = ["", f"--config={find_config(argument)}", *last_of_each(overrides)]
    values = flags.FlagValues()
    with readable_errors():
        config_flags.DEFINE_config_file(
            "config", lock_config=True, flag_values=values, sys_argv=arguments
        )
        values(arguments)
        config = values["config"].value
    resolve(config)
    return config


def override_config(config: ml_collections.ConfigDict, overrides: Sequence[str]):
    """Applies `--config.KEY=VALUE` overrides to `config` in place.

    Raises:
      ConfigError: for a key that does not exist, or a value of the wrong type.
    """
    arguments = ["", *last_of_each(overrides)]
    values = flags.FlagValues()
    with readable_errors():
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        values(arguments)
    resolve(config)


RENAMED_KINDS = {"intern_image": "internimage", "uper": "upernet"}


def upgrade(config: ml_collections.ConfigDict | dict[str, Any]):
    """Gives a config of an earlier version, in place, the names and keys of this one."""
    model = config["model"]
    for part in ("backbone", *HEADS):
        settings = model.get(part)
        if settings and settings["kind"] in RENAMED_KINDS:
            settings["kind"] = RENAMED_KINDS[settings["kind"]]
    if "kernels" not in model:
        model["kernels"] = "auto"
    mask2former = config.get("loss", {}).get("mask2former", {})
    if "importance_ratio" in mask2former:
        mask2former["importance_sample_ratio"] = mask2former["importance_ratio"]
        del mask2former["importance_ratio"]


def resolve(config: ml_collections.ConfigDict):
    """Fills in what follows from the classes of a user's own data, and renames what is old.

    The lines of the file `config.data.classes` go into `config.data.class_lines`, so that a
    checkpoint needs the file no more. The heads get an output for each class.

    Raises:
      ConfigError: where there is no such file, or where it does not list classes.
    """
    with config.unlocked():
        upgrade(config)
    if "class_lines" not in config.get("data", ()):
        return
    if config.data.classes:
        config.data.class_lines = class_list.read_lines(config.data.classes)
        config.data.classes = ""
    classes, _ = class_list.parse_lines(config.data.class_lines)
    for head in HEADS:
        if config.model.get(head):
            config.model[head].num_classes = len(classes)


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim.lr": …} from nested mappings."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten_config(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
