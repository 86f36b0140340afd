"""The documentation: what stands on a page is there, and what is generated is up to date."""

import doctest
import functools
import importlib
import importlib.util
import pathlib
import re
import shlex

import pytest

from jaxseg.__main__ import COMMANDS
from jaxseg.config import flatten_config, load_config
from jaxseg.zoo.catalogue import MODELS

ROOT = pathlib.Path(__file__).parents[1]
GENERATED = {
    "config_reference": "reference/config.md",
    "cli_reference": "reference/cli.md",
    "zoo_table": "models/zoo.md",
}
PAGES = sorted(
    [ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "SECURITY")]
    + [ROOT / "pallas_kernels/README.md"]
    + [page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts]
)
# Programs that are started by their module, as the command of the same meaning.
MODULES = {command.module.removesuffix(".__main__"): name for name, command in COMMANDS.items()}
MODULES |= {"jaxseg.main": "train"}

# The modules whose docstrings hold examples.
WITH_EXAMPLES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for package in ("jaxseg", "converters", "pallas_kernels")
    for file in (ROOT / package).rglob("*.py")
    if "    >>> " in file.read_text()
)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@functools.cache
def generator(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/gen/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def known_flags(command):
    """The flags of a command, by its help."""
    reference = generator("cli_reference")
    helps = [(), *((word,) for word in reference.SUBCOMMANDS.get(command, ()))]
    text = "\n".join(reference.help_text(COMMANDS[command].module, *words) for words in helps)
    return set(re.findall(r"(?<![\w-])--[\w-]+", text)) | {"--help", "--mode"}


@functools.cache
def known_keys():
    """The keys of some recipe; those of models differ."""
    recipes = ("cityscapes:upernet_internimage_t", "ade20k:upernet_deit_adapter_b")
    recipes += (
        "coco_stuff164k:mask2former_beit_adapter_l",
        "coco_stuff164k:upernet_beit_adapter_l",
        "ade20k:mask2former_dinov3_vits16",
        "custom:upernet_internimage_t",
    )
    found = set()
    for recipe in recipes:
        found |= set(flatten_config(load_config(recipe, classes_needed=False).to_dict()))
    return found


def commands(page):
    """The words of every command in the bash blocks of a page that jaxseg runs."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables of the environment
                words = words[1:]
            if words[:1] == ["jaxseg"]:
                yield words[1:]
            elif words[:2] in (["python", "-m"], ["python3", "-m"]) and words[2] in MODULES:
                yield [MODULES[words[2]], *words[3:]]


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_up_to_date(name):
    assert generator(name).page() == (ROOT / "docs" / GENERATED[name]).read_text(), "run: make docs"


def test_every_key_of_the_base_config_has_a_meaning():
    rows = re.findall(
        r"^\| `([\w.]+)` \|.*\| *(.*?) *\|$", generator("config_reference").page(), re.M
    )
    assert len(rows) > 60
    assert not [key for key, meaning in rows if not meaning]


@pages
def test_commands_and_their_flags_exist(page):
    for name, *words in commands(page):
        if name in ("--help", "--version", "COMMAND"):
            continue
        assert name in COMMANDS, name
        for word in words:
            flag = word.partition("=")[0]
            if flag.startswith("--") and not flag.startswith("--config."):
                assert flag in known_flags(name), (name, flag)


@pages
def test_settings_exist(page):
    for key in re.findall(r"--config\.([a-z_][\w.]*\w)", page.read_text()):
        known = known_keys()
        assert key in known or any(name.startswith(f"{key}.") for name in known), key


@pages
def test_recipes_exist(page):
    for file, variant in re.findall(r"configs/(\w+)\.py:([a-z]\w+)", page.read_text()):
        load = pathlib.Path(ROOT / "configs" / f"{file}.py")
        assert load.is_file(), file
        namespace = importlib.util.spec_from_file_location(file, load)
        module = importlib.util.module_from_spec(namespace)
        namespace.loader.exec_module(module)
        module.get_config(variant)


@pages
def test_links_resolve(page):
    for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pages
def test_python_is_python(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        compile(block, str(page), "exec")


def test_the_readme_fits_and_repeats_the_catalogue():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    published = {model.config: model for model in MODELS}
    rows = re.findall(r"\| `(configs/\S+)` \| (\d+) M \| ([\d.]+)(?: / ([\d.]+))? \|", text)
    assert len(rows) > 5
    for config, parameters, single, multi in rows:
        if config in published:
            model = published[config]
            assert float(parameters) == model.params_m, config
            assert float(single) == model.miou_ss, config
            assert float(multi) == model.miou_ms, config


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_give_what_they_show(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted
    assert not results.failed
