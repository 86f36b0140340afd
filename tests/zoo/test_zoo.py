"""The catalogue finds models by name, downloads their weights, and is printed by `jaxseg zoo`."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import pytest

import jaxseg
from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.zoo import __main__, backbones, catalogue, download, internimage
from jaxseg.zoo.weights import Model

POTSDAM = "mask2former_beit_adapter_large_512_80k_potsdam_ss"
ALL_ROWS = (*catalogue.MODELS, *catalogue.WITHOUT_WEIGHTS, *catalogue.BACKBONES)


def command(*arguments, **options):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_patterns():
    assert jaxseg.list_models() == [model.name for model in catalogue.MODELS]
    names = jaxseg.list_models("*internimage*cityscapes*")
    assert len(names) == 10
    assert names[0] == "upernet_internimage_t_512x1024_160k_cityscapes"
    assert names[-1] == "mask2former_internimage_h_1024x1024_80k_mapillary2cityscapes"
    assert jaxseg.list_models("*_g_*") == []  # the weights of its backbone alone are published


def test_get_knows_the_nearest_names():
    name = "upernet_internimage_t_512_160k_ade20k"
    assert catalogue.find_model(name).config == "configs/ade20k.py:upernet_internimage_t"
    with pytest.raises(ConfigError, match=rf"'{name}s'; the nearest are {name}, "):
        catalogue.find_model(f"{name}s")
    with pytest.raises(ConfigError, match="nearest"):
        catalogue.find_model("")


def test_file_lies_in_the_cache(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(download, "fetch", lambda *given: asked.append(given) or given[1])
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    catalogue.fetch_weights("internimage_g_pretrainto22k_384")
    monkeypatch.delenv("JAXSEG_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    catalogue.fetch_weights("segformer_internimage_l_512x1024_80k_mapillary")
    assert asked == [
        (
            f"https://huggingface.co/OpenGVLab/InternImage/resolve/main/{path.name}",
            tmp_path / path,
            None,
        )
        for path in (
            pathlib.Path("checkpoints/internimage_g_pretrainto22k_384.pth"),
            pathlib.Path(
                "home/.cache/jaxseg/checkpoints/segformer_internimage_l_512x1024_80k_mapillary.pth"
            ),
        )
    ]


def test_the_published_hash_is_checked(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    asked = []
    monkeypatch.setattr(download, "fetch", lambda *given: asked.append(given) or given[1])
    catalogue.fetch_weights("deit_small_patch16_224")
    file = "deit_small_patch16_224-cd65a155.pth"
    target = tmp_path / "checkpoints" / file
    assert asked == [(f"https://dl.fbaipublicfiles.com/deit/{file}", target, "cd65a155")]


@pytest.mark.parametrize("model", catalogue.WITHOUT_WEIGHTS, ids=lambda model: model.name)
def test_weights_that_were_not_published_are_trained(model):
    assert catalogue.find_model(model.name) is model
    assert model.name not in jaxseg.list_models()
    with pytest.raises(ConfigError) as caught:
        catalogue.fetch_weights(model.name)
    message = f"of {model.name} were not published; train its recipe: --config {model.config}"
    assert str(caught.value).endswith(message)


def test_recipes_are_found_in_the_published_tables():
    assert catalogue.find_recipe("mask2former_beit_adapter_l", "potsdam").name == POTSDAM
    name = "upernet_internimage_l_512x1024_80k_mapillary"
    assert catalogue.find_recipe("upernet_internimage_l", "mapillary_to_cityscapes").name == name
    assert catalogue.find_recipe("upernet_internimage_g", "ade20k") is None  # in no table
    assert catalogue.find_recipe("upernet_internimage_t", "potsdam") is None


def test_nearest_names_are_told_for_a_file_too():
    with pytest.raises(ConfigError, match="internimage_t_1k_224"):
        catalogue.fetch_weights("internimage_t")


def test_without_network_the_place_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")  # where nobody listens
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(CheckpointError) as caught:
        catalogue.fetch_weights("internimage_t_1k_224")
    assert str(tmp_path / "checkpoints" / "internimage_t_1k_224.pth") in str(caught.value)
    assert f"{internimage.FILES}/internimage_t_1k_224.pth" in str(caught.value)
    # Put there by hand, it is found.
    (tmp_path / "checkpoints" / "internimage_t_1k_224.pth").write_bytes(b"weights")
    assert catalogue.fetch_weights("internimage_t_1k_224").read_bytes() == b"weights"


def test_table_has_the_columns_that_fit():
    narrow = __main__.table(catalogue.MODELS, 80).splitlines()
    assert narrow[0].split() == ["model", "mIoU", "ss/ms"]
    assert narrow[1].split() == [catalogue.MODELS[0].name, "82.58/83.40"]
    assert max(map(len, narrow)) <= 80
    assert len(narrow) == 1 + len(catalogue.MODELS)
    wide = __main__.table(catalogue.MODELS, 200).splitlines()
    assert wide[0].split()[-3:] == ["FLOPs", "training", "config"]
    assert "configs/cityscapes.py:upernet_internimage_t" in wide[1]
    assert wide[-1].split()[1:-1] == ["62.60/63.00", "7643M", "-", "-"]
    assert __main__.table(catalogue.MODELS, 10).splitlines()[0].split() == ["model"]


def test_command_prints_all_columns_of_what_matches(capsys):
    __main__.main(["*mapillary2cityscapes"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-1] == "config"
    assert [line.split()[1:3] for line in lines[1:]] == [
        ["85.94/86.22", "256M"],
        ["86.20/86.42", "368M"],
        ["85.16/85.67", "220M"],
        ["85.41/85.93", "330M"],
        ["86.37/86.96", "1094M"],
    ]
    __main__.main(["upernet_internimage_h_896_160k_ade20k"])
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["config"] == "configs/ade20k.py:upernet_internimage_h"
    assert facts["train_time"] == "2d (2n)"


def test_command_prints_every_row(capsys):
    __main__.main([])
    words = capsys.readouterr().out.split()
    assert [word for word in words if word in {row.name for row in ALL_ROWS}] == [
        row.name for row in ALL_ROWS
    ]


def test_command_says_which_weights_were_not_published(capsys):
    __main__.main(["*_8*potsdam*"])
    title, _, row = capsys.readouterr().out.splitlines()
    assert title == "without published weights; the recipe can be trained:"
    assert row.split()[:3] == [POTSDAM, "80.00/-", "352M"]
    __main__.main([POTSDAM])
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["url"] == "not published; the recipe can be trained"
    assert facts["config"] == "configs/potsdam.py:mask2former_beit_adapter_l"
    __main__.main(["*chase*"])
    assert "Dice 89.40" in capsys.readouterr().out


def test_json_has_every_row_and_the_same_keys_in_each(capsys):
    __main__.main(["--json"])
    objects = json.loads(capsys.readouterr().out)
    keys = ["kind", *(field.name for field in dataclasses.fields(Model))]
    assert all(list(each) == keys for each in objects)
    assert [each["name"] for each in objects] == [row.name for row in ALL_ROWS]
    for each, row in zip(objects, ALL_ROWS, strict=True):
        assert each.pop("kind") == ("model" if isinstance(row, Model) else "backbone")
        facts = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(row).items()}
        assert {key: fact for key, fact in each.items() if fact is not None} == {
            key: fact for key, fact in facts.items() if fact is not None
        }


def test_json_of_a_pattern_and_of_a_name(capsys):
    __main__.main(["*_t_*", "--json"])
    kinds = [(row["kind"], row["name"]) for row in json.loads(capsys.readouterr().out)]
    assert kinds == [
        ("model", "upernet_internimage_t_512x1024_160k_cityscapes"),
        ("model", "upernet_internimage_t_512_160k_ade20k"),
        ("backbone", "internimage_t_1k_224"),
    ]
    __main__.main(["--json", POTSDAM])
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["url"], row["crop_hw"], row["batch_size"]) == (None, [512, 512], 8)
    with pytest.raises(SystemExit, match="try"):
        __main__.main(["--json", "cityscapes"])


def test_command_knows_what_training_starts_from(capsys):
    __main__.main(["deit_tiny_patch16_224"])
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["url"] == f"{backbones.DEIT}/deit_tiny_patch16_224-a1311bcf.pth"


def test_command_as_a_process():
    listed = command("-m", "jaxseg.zoo", "*_t_*")
    assert (listed.returncode, listed.stderr) == (0, "")
    _, *models, _, title, backbone = listed.stdout.splitlines()
    assert len(models) == 2
    assert "config.init=zoo:NAME" in title
    assert backbone == "internimage_t_1k_224"
    nothing = command("-m", "jaxseg.zoo", "cityscapes")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    message = "jaxseg: no published model matches 'cityscapes'; try '*cityscapes*'\n"
    assert nothing.stderr == message


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("upernet_beit", "try '*upernet_beit*'"),
        ("*_ade20k_*_", "the nearest are dinov3_"),
        ("upernet_internimage_t_512_160k_ade", "try '*upernet_internimage_t_512_160k_ade*'"),
        ("upernet_internimage_t_512_160k_ade2k", "are upernet_internimage_t_512_160k_ade20k, "),
    ],
)
def test_hint_for_a_pattern_that_nothing_matches_is_one_that_does(pattern, hint):
    with pytest.raises(SystemExit, match=re.escape(hint)):
        __main__.main([pattern])


def test_the_table_is_read_without_jax():
    program = (
        "import sys, jaxseg; assert jaxseg.list_models();"
        "assert not {'jax', 'numpy', 'flax', 'cv2'} & set(sys.modules)"
    )
    done = command("-c", program)
    assert done.returncode == 0, done.stderr
