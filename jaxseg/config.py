"""Configs: finds a recipe, applies overrides, and resolves what follows from the data."""

import contextlib
import copy
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from jaxseg.errors import ConfigError
from jaxseg.recipes import base, class_list
from jaxseg.recipes.ranges import check_ranges

HEADS = ("decode_head", "auxiliary_head")
# The words of ml_collections 1.1 for an override of a part that the recipe does not have.
OF_NOTHING = re.compile(r'Override (\S+) can not be applied because field "(\w+)" is None')
# And for a value that is no literal of Python.
UNREADABLE = re.compile(r"Could not parse (.*): SyntaxError")
# Settings of a user's own data that earlier versions did not have.
LATER_OF_OWN_DATA = {
    "split_list": "",
    "val_share": 0.0,
    "share_by": "file",
    "share_seed": 0,
    "fit": (),
}
# Kinds of modules that earlier versions called differently.
RENAMED_KINDS = {"intern_image": "internimage", "uper": "upernet"}


def installed_configs() -> pathlib.Path:
    """Returns the folder of the published recipes: in the installed package, or the repository."""
    package = pathlib.Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(argument: str) -> str:
    """Finds the file of FILE[:VARIANT] in the working directory or among the published recipes.

    A published recipe may be named by its dataset alone: `cityscapes:upernet_internimage_t`.

    Args:
      argument: what the user gave as `--config`.

    Returns:
      The argument, with the path of the file that was found.

    Raises:
      ConfigError: if there is no such file; the message lists the published ones.
    """
    file, colon, variant = argument.partition(":")
    installed = installed_configs()
    candidates = [pathlib.Path(file), installed.parent / file]
    if not file.endswith(".py"):
        candidates.append(installed / f"{file}.py")
    for candidate in candidates:
        if candidate.is_file():
            return f"{candidate}{colon}{variant}"
    names = sorted(f"configs/{path.name}" for path in installed.glob("*.py"))
    raise ConfigError(f"--config {file}: no such file; installed are {', '.join(names)}")


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Turns the errors of absl and ml_collections into messages for the user.

    Raises:
      ConfigError: for a bad flag, variant, key or value, which the message names.
    """
    try:
        yield
    # An override of a key that the config does not have; a KeyError if other keys follow it.
    except (AttributeError, KeyError) as error:
        text = str(error).replace("\\n", "\n").replace("\\'", "'").strip("\"'")
        key, *hint = text.split("\n")
        name = key.strip("'")
        raise ConfigError(
            ". ".join([f"--config.KEY=VALUE: no such key: '{name}'", *hint])
        ) from error
    except ValueError as error:
        if found := OF_NOTHING.match(str(error)):
            message = f"--config.{found[1]}: there is no {found[2]} in this recipe"
        elif found := UNREADABLE.match(str(error)):
            message = f"--config.KEY=VALUE: {found[1]} is no value of Python"
        else:
            raise
        raise ConfigError(message) from error
    except flags.Error as error:  # the last line is what the config file raised
        message = str(error).strip().splitlines()[-1].strip()
        if message.startswith("Unknown command line flag"):
            message += "; a setting is --config.KEY=VALUE"
        raise ConfigError(re.sub(r"^\w+Error: ", "", message)) from error


def load_config(
    recipe: str,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    classes_needed: bool = True,
) -> ml_collections.ConfigDict:
    """Loads a recipe, applies overrides and resolves the result.

    Args:
      recipe: FILE[:VARIANT], as `find_config` takes it.
      overrides: arguments of the form `--config.KEY=VALUE`, or a mapping from keys to values:
        `{"data.root": "cityscapes", "steps": 1000}`.
      classes_needed: whether a recipe for a user's own data must name a file of class names.

    Raises:
      ConfigError: for a file, variant or key that does not exist, a value of the wrong type, or an
        argument of another form.
    """
    arguments = ["", f"--config={find_config(recipe)}", *_arguments(overrides)]
    values = flags.FlagValues()
    with readable_errors():
        config_flags.DEFINE_config_file(
            "config", lock_config=True, flag_values=values, sys_argv=arguments
        )
        _check_all_used(values(arguments))
        config = values["config"].value
    _keep_given(config, arguments)
    resolve(config, classes_needed=classes_needed)
    return config


def override_config(
    config: ml_collections.ConfigDict, overrides: Sequence[str] | Mapping[str, Any]
):
    """Applies overrides to a config in place, as `load_config` takes them, and resolves it.

    Raises:
      ConfigError: for a key that does not exist, a value of the wrong type, or an argument of
        another form.
    """
    arguments = ["", *_arguments(overrides)]
    values = flags.FlagValues()
    with readable_errors():
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        _check_all_used(values(arguments))
    _keep_given(config, arguments)
    resolve(config)


def _keep_given(config: ml_collections.ConfigDict, arguments: Sequence[str]):
    """Takes out of `config.data.fit` what the user gives: it is not chosen from the data."""
    given = {argument.partition("=")[0].removeprefix("--config.") for argument in arguments}
    if "fit" in config.get("data", ()) and "data.fit" not in given:
        config.data.fit = tuple(key for key in config.data.fit if key not in given)


def set_flat(config: ml_collections.ConfigDict, settings: Mapping[str, Any]):
    """Sets settings by flat key, such as "optim.lr", in place. JSON's lists become tuples."""
    for key, value in settings.items():
        *sections, last = key.split(".")
        node = config
        for section in sections:
            node = node[section]
        node[last] = tuple(value) if isinstance(value, list) else value


def resolve(config: ml_collections.ConfigDict, *, classes_needed: bool = True):
    """Upgrades a config in place, and fills in what follows from the classes of a user's own data.

    The lines of the file `config.data.classes` are copied to `config.data.class_lines`, so that
    checkpoints do not need the file. Each head gets one output per class.

    Args:
      config: the config.
      classes_needed: whether a recipe for a user's own data must name that file.

    Raises:
      ConfigError: if the file cannot be read, or does not list classes, or if a number is outside
        its range.
    """
    with config.unlocked():
        upgrade(config)
    check_ranges(flatten_config(config.to_dict()))
    if "class_lines" not in config.get("data", ()):
        return
    if config.data.classes:
        config.data.class_lines = class_list.read_lines(config.data.classes)
        config.data.classes = ""
    if not (config.data.class_lines or classes_needed):
        return
    count = len(class_list.parse_lines(config.data.class_lines).classes)
    for head in HEADS:
        if config.model.get(head):
            config.model[head].num_classes = count


def upgrade(config: ml_collections.ConfigDict | dict[str, Any]):
    """Renames in place what an earlier version calls differently, and adds what it did not have."""
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
    later = {"loss": base.BASE["loss"], "optim": base.BASE["optim"], "eval": {"measures": ()}}
    data = config.get("data", {})
    if "crop_hw" in data:
        later["data"] = {"class_crop_probability": 0.0, "augmentation": "mmseg"}
    if "class_lines" in data:
        later["data"] = LATER_OF_OWN_DATA | later.get("data", {})
    for section, defaults in later.items():
        for key in defaults.keys() - set(config.get(section, defaults)):
            config[section][key] = copy.deepcopy(defaults[key])


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings to one with dotted keys: {"optim.lr": 6e-5, …}."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten_config(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _arguments(overrides: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Returns overrides as arguments, without those that a later one of the same key replaces.

    absl would join the values of a tuple that is given twice.
    """
    if isinstance(overrides, Mapping):
        return [f"--config.{key}={value}" for key, value in overrides.items()]
    arguments = [re.sub("^-config", "--config", argument) for argument in overrides]
    last = {argument.partition("=")[0]: i for i, argument in enumerate(arguments)}
    return [
        argument
        for i, argument in enumerate(arguments)
        if not argument.startswith("--config.") or last[argument.partition("=")[0]] == i
    ]


def _check_all_used(arguments: Sequence[str]):
    """Checks what is left of arguments after the flags: nothing but the program's name."""
    _, *rest = arguments
    if rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}; a setting is --config.KEY=VALUE")
