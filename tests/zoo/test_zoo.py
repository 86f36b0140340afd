"""The table of published models agrees with what was published and with what was recorded."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

import jaxseg
from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.zoo import __main__, catalogue, download
from support.published import family_of, recipe_of

FACTS = pathlib.Path(__file__).parents[1] / "reference"
# The rows of the READMEs, and what InternImage's models measure there and as built with PyTorch.
PUBLISHED = {
    row["config"].removesuffix(".py"): row
    for family in ("internimage", "vit_adapter")
    for row in json.loads((FACTS / family / "published.json").read_text())
    if row["ckpt"] and row.get("split") != "test"
}
# Published as what others start from, without scores.
STARTS = {"mask2former_beit_adapter_large_896_80k_mapillary_ss"}
MEASURED = {
    row["config"]: row
    for row in json.loads((FACTS / "internimage" / "readme_comparison.json").read_text())
}
FOLDERS = {
    "COCO-Stuff-10K": "coco_stuff10k",
    "COCO-Stuff-164K": "coco_stuff164k",
    "NYU-Depth-V2": "nyu_depth_v2",
    "Pascal Context 59": "pascal_context",
}
MODELS = {
    family: [model for model in catalogue.MODELS if family_of(model.name) == family]
    for family in ("internimage", "vit_adapter")
}


def command(*arguments, **options):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def number(text, unit):
    return float(text.removesuffix(unit)) if text is not None else None


def test_every_published_model_is_there_once():
    names = [model.name for model in catalogue.MODELS]
    assert len(names) == len(set(names)) == 48
    assert set(names) == set(PUBLISHED) | STARTS


@pytest.mark.parametrize("model", catalogue.MODELS, ids=lambda model: model.name)
def test_row_is_as_published(model):
    if model.name in STARTS:
        assert model.miou_ss is None
        assert any(row.get("pretrain_file") == model.file_name for row in PUBLISHED.values())
        return
    row = PUBLISHED[model.name]
    assert model.dataset == FOLDERS.get(row["dataset"], row["dataset"].lower())
    assert model.file_name == row["ckpt"]
    assert model.original_config == f"segmentation/configs/{model.dataset}/{row['config']}"
    assert (model.miou_ss, model.miou_ms) == (row["ss"], row["ms"])
    assert model.flops_g == number(row["flops"], "G")
    assert model.train_speed == number(row["train_speed"], "s / iter")
    assert model.train_time == row["train_time"]
    billions = row["params"].endswith("B")
    assert model.params_m == pytest.approx(
        1000 * number(row["params"], "B") if billions else number(row["params"], "M")
    )


@pytest.mark.parametrize("model", MODELS["internimage"], ids=lambda model: model.name)
def test_row_is_as_measured(model):
    measured = MEASURED[model.name]
    assert model.flops_hw == tuple(measured["flops_input"][1:])
    assert model.flops_g == round(measured["flops_G"])
    if measured["params_match"]:
        digits = 10 if measured["readme_params"].endswith("B") else 1  # 1.12B: to ten millions
        assert model.params_m == digits * round(measured["params_M"] / digits)
    else:  # the README takes a billion for 1024 millions
        assert model.params_m == 10 * round(100 * measured["params_M_div_1024"])


@pytest.mark.parametrize("model", MODELS["vit_adapter"], ids=lambda model: model.name)
def test_parameters_are_as_measured(model):
    path = FACTS / "vit_adapter" / "manifests" / f"{model.name}.json"
    parameters = json.loads(path.read_text())["num_params"] / 1e6
    # Its README rounds most of them, up and down.
    assert model.params_m == pytest.approx(parameters, abs=1)


@pytest.mark.parametrize("model", catalogue.MODELS, ids=lambda model: model.name)
def test_config_is_that_of_the_original(model):
    assert model.config == recipe_of(model.name)


def test_files_lie_where_their_authors_released_them():
    weights = (*catalogue.MODELS, *catalogue.BACKBONES)
    places = (catalogue.INTERNIMAGE, catalogue.VIT_ADAPTER, catalogue.DEIT, catalogue.BEIT)
    assert all(row.url.startswith(tuple(f"{place}/" for place in places)) for row in weights)
    assert all(row.file_name.endswith((".pth", ".pth.tar", ".zip")) for row in weights)
    for names in ({row.name for row in weights}, {row.file_name for row in weights}):
        assert len(names) == len(weights)  # the cache has them all in one folder


def test_patterns():
    assert jaxseg.list_models() == [model.name for model in catalogue.MODELS]
    names = jaxseg.list_models("*internimage*cityscapes*")
    assert len(names) == 10
    assert names[0] == "upernet_internimage_t_512x1024_160k_cityscapes"
    assert names[-1] == "mask2former_internimage_h_1024x1024_80k_mapillary2cityscapes"
    assert jaxseg.list_models("*_g_*") == []  # nothing is published of it but the backbone


def test_get_knows_the_nearest_names():
    name = "upernet_internimage_t_512_160k_ade20k"
    assert catalogue.find_model(name).config == "configs/ade20k.py:upernet_internimage_t"
    with pytest.raises(ConfigError, match=rf"'{name}s'; the nearest are {name}, "):
        catalogue.find_model(f"{name}s")
    with pytest.raises(ConfigError, match="nearest"):
        catalogue.find_model("")


def test_file_lies_in_the_cache(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        download, "fetch", lambda url, target: asked.append((url, target)) or target
    )
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    catalogue.fetch_weights("internimage_g_pretrainto22k_384")
    monkeypatch.delenv("JAXSEG_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    catalogue.fetch_weights("segformer_internimage_l_512x1024_80k_mapillary")
    assert asked == [
        (
            f"https://huggingface.co/OpenGVLab/InternImage/resolve/main/{path.name}",
            tmp_path / path,
        )
        for path in (
            pathlib.Path("checkpoints/internimage_g_pretrainto22k_384.pth"),
            pathlib.Path(
                "home/.cache/jaxseg/checkpoints/segformer_internimage_l_512x1024_80k_mapillary.pth"
            ),
        )
    ]


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
    assert f"{catalogue.INTERNIMAGE}/internimage_t_1k_224.pth" in str(caught.value)
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
    assert wide[-1].split()[1:-1] == ["67.80/68.20", "568M", "-", "-"]
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


def test_command_knows_what_training_starts_from(capsys):
    __main__.main(["deit_tiny_patch16_224"])
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["url"] == f"{catalogue.DEIT}/deit_tiny_patch16_224-a1311bcf.pth"


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
        ("*_ade20k_*_", "the nearest are upernet_"),
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
