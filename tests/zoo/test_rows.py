"""The rows of the catalogue agree with what was published, what was recorded and the recipes.

`published.json` has the rows of the READMEs of both original repositories.
"""

import json
import pathlib
import re

import pytest

from jaxseg.config import load_config
from jaxseg.zoo import backbones, catalogue, dinov3, internimage, vit_adapter
from jaxseg.zoo.weights import Model
from support.published import MANIFESTS, family_of, manifest_of, recipe_of
from support.reference_files import REFERENCE

ROWS = json.loads(pathlib.Path(__file__).with_name("published.json").read_text())
PUBLISHED = {row["config"].removesuffix(".py"): row for row in ROWS if row["split"] == "val"}
# Published as what others start from, without scores and without a row.
STARTS = {"mask2former_beit_adapter_large_896_80k_mapillary_ss"}
# Their configs were published, but they are in no table.
CONFIG_ALONE = {
    "upernet_beit_large_512_160k_ade20k_ss",
    "upernet_deit_adapter_light_base_512_160k_ade20k",
    "upernet_internimage_g_896_160k_ade20k",
}
# What InternImage's models measure in its README and as built with PyTorch.
MEASURED = {
    row["config"]: row
    for row in json.loads((REFERENCE / "internimage" / "readme_comparison.json").read_text())
}
FOLDERS = {
    "COCO-Stuff-10K": "coco_stuff10k",
    "COCO-Stuff-164K": "coco_stuff164k",
    "NYU-Depth-V2": "nyu_depth_v2",
    "Pascal Context 59": "pascal_context",
}
LOGS = {"InternImage": internimage.LOGS, "ViT-Adapter": vit_adapter.LOGS}
DINOV3 = (*dinov3.MODELS, *dinov3.WITHOUT_WEIGHTS, *dinov3.BACKBONES)


def others(rows):
    """Those without a test of their own; DINOv2's is in test_dinov2_recipes.py."""
    return tuple(row for row in rows if not row.name.startswith(("dinov2_", "dinov3_")))


MODELS, WITHOUT_WEIGHTS = others(catalogue.MODELS), others(catalogue.WITHOUT_WEIGHTS)
BACKBONES = others(catalogue.BACKBONES)
ALL_MODELS = (*MODELS, *WITHOUT_WEIGHTS)
FILES = (*MODELS, *BACKBONES)
BY_NAME = {row.name: row for row in (*ALL_MODELS, *BACKBONES)}


def by_name(models):
    return pytest.mark.parametrize("model", models, ids=lambda model: model.name)


def number(text, unit):
    return float(text.removesuffix(unit)) if text is not None else None


def millions(text):
    """Parameters as the READMEs write them: 59M or 1.31B."""
    return 1000 * number(text, "B") if text.endswith("B") else number(text, "M")


def test_every_published_model_is_there_once():
    assert len(BY_NAME) == len(ALL_MODELS) + len(BACKBONES)
    assert len(MODELS) == 48
    assert {model.name for model in ALL_MODELS} == set(PUBLISHED) | STARTS | CONFIG_ALONE


def test_every_original_config_is_there():
    assert {path.stem for path in MANIFESTS} == {model.name for model in ALL_MODELS}


def test_models_without_a_published_checkpoint_are_listed_as_such():
    unpublished = {name for name, row in PUBLISHED.items() if row["ckpt"] is None}
    assert {model.name for model in WITHOUT_WEIGHTS} == unpublished | CONFIG_ALONE
    for model in WITHOUT_WEIGHTS:
        assert (model.url, model.file_name, model.sha256, model.license) == (None, "", None, None)
    assert all(row.url for row in FILES)


@by_name(ALL_MODELS)
def test_row_is_as_published(model):
    row = PUBLISHED.get(model.name)
    if row is None:
        scores = (model.miou_ss, model.miou_ms, model.miou_test, model.mdice)
        assert scores == (None, None, None, None)
        assert model.log_url is None
        return
    assert model.dataset == FOLDERS.get(row["dataset"], row["dataset"].lower())
    assert model.file_name == (row["ckpt"] or "")
    assert model.original_config == f"segmentation/configs/{model.dataset}/{row['config']}"
    scores = (model.mdice, None) if row["metric"] == "mDice" else (model.miou_ss, model.miou_ms)
    assert scores == (row["ss"], row["ms"])
    assert (model.mdice is None) == (row["metric"] == "mIoU")
    assert model.params_m == pytest.approx(millions(row["params"]))
    assert model.flops_g == number(row["flops"], "G")
    assert model.train_speed == number(row["train_speed"], "s / iter")
    assert model.train_time == row["train_time"]


@by_name(ALL_MODELS)
def test_crop_batch_and_schedule_are_as_published(model):
    row = PUBLISHED.get(model.name)
    if row is None:
        return
    sides = [int(side) for side in row["crop"].split("x")]
    assert model.crop_hw == (sides[0], sides[-1])
    assert f"{model.steps // 1000}k" == row["schedule"]
    if row["batch"]:  # GPUs x images of each
        gpus, images = row["batch"].split("x")
        assert model.batch_size == int(gpus) * int(images)


@by_name(ALL_MODELS)
def test_recipe_trains_as_the_row_says(model):
    config = load_config(model.config)
    assert model.crop_hw == config.data.crop_hw
    assert model.batch_size == config.batch_size
    assert model.steps == config.steps
    assert f"zoo:{model.start}" == config.init


@by_name(ALL_MODELS)
def test_start_is_a_published_file_and_the_published_one(model):
    start = BY_NAME[model.start]
    assert start.url
    file = PUBLISHED.get(model.name, {}).get("pretrain_file")
    assert file in (None, start.file_name)


@by_name(ALL_MODELS)
def test_log_is_the_published_one(model):
    row = PUBLISHED.get(model.name, {"log": None})
    if row["log"] is None:
        assert model.log_url is None
    elif row["log"].isdecimal():  # of an issue
        assert model.log_url == f"https://github.com/czczup/ViT-Adapter/issues/{row['log']}"
    else:
        assert model.log_url == f"{LOGS[row['repo']]}/{row['log']}"


def test_one_model_has_a_score_on_the_test_set():
    row = next(row for row in ROWS if row["split"] == "test")
    scored = {model.name: model.miou_test for model in ALL_MODELS if model.miou_test is not None}
    assert scored == {row["config"].removesuffix(".py"): row["ms"]}
    assert row["ms"] == 85.2


@by_name([model for model in MODELS if family_of(model.name) == "internimage"])
def test_row_is_as_measured(model):
    measured = MEASURED[model.name]
    assert model.flops_hw == tuple(measured["flops_input"][1:])
    assert model.flops_g == round(measured["flops_G"])
    if measured["params_match"]:
        digits = 10 if measured["readme_params"].endswith("B") else 1  # 1.12B: to ten millions
        assert model.params_m == digits * round(measured["params_M"] / digits)
    else:  # the README takes a billion for 1024 millions
        assert model.params_m == 10 * round(100 * measured["params_M_div_1024"])


@by_name([m for m in ALL_MODELS if m.params_m and family_of(m.name) == "vit_adapter"])
def test_parameters_are_as_measured(model):
    parameters = manifest_of(model.name)["num_params"] / 1e6
    # Its README rounds most of them, up and down.
    assert model.params_m == pytest.approx(parameters, abs=1)


@by_name(ALL_MODELS)
def test_config_is_that_of_the_original(model):
    assert model.config == recipe_of(model.name)


def test_files_lie_where_their_authors_released_them():
    places = (internimage.FILES, vit_adapter.RELEASES, backbones.DEIT, backbones.BEIT)
    assert all(row.url.startswith(tuple(f"{place}/" for place in places)) for row in FILES)
    assert all(row.file_name.endswith((".pth", ".pth.tar", ".zip")) for row in FILES)
    # The cache has them all in one folder.
    assert len({row.file_name for row in FILES}) == len(FILES)


def test_hashes_of_deit_are_those_in_the_names_of_its_files():
    known = {row.name: row.sha256 for row in FILES if row.sha256}
    assert known == {
        "deit_tiny_patch16_224": "a1311bcf",
        "deit_small_patch16_224": "cd65a155",
        "deit_base_patch16_224": "b5f2ef4d",
    }
    for name, sha256 in known.items():
        assert BY_NAME[name].file_name == f"{name}-{sha256}.pth"
    assert all(re.fullmatch("[0-9a-f]{8,64}", sha256) for sha256 in known.values())


def test_licenses_are_those_of_the_authors():
    for row in FILES:
        copied = re.match("augreg|uniperceiver", row.name)  # without a license of their authors
        licenses = {
            internimage.FILES: "MIT",
            vit_adapter.RELEASES: None if copied else "Apache-2.0",
            backbones.DEIT: "Apache-2.0",
            backbones.BEIT: "MIT",
        }
        place = next(place for place in licenses if row.url.startswith(place))
        assert row.license == licenses[place]


def test_rows_of_dinov3_are_those_of_its_recordings_and_recipes():
    manifests = REFERENCE / "dinov3" / "manifests"
    assert {row.name for row in DINOV3} <= {path.stem for path in manifests.glob("*.json")}
    for row in DINOV3:
        recorded = json.loads((manifests / f"{row.name}.json").read_text())
        if isinstance(row, Model):
            config = load_config(row.config)
            assert (row.crop_hw, row.steps) == (config.data.crop_hw, config.steps)
            assert (row.batch_size, f"zoo:{row.start}") == (config.batch_size, config.init)
            assert row.params_m == pytest.approx(recorded["num_params_M"], abs=1)
        if row.url:
            assert row.url.startswith(f"{dinov3.FILES}/dinov3_{row.name.split('_')[1]}/")
            assert row.file_name.endswith(f"-{row.sha256}.pth")
            assert row.gated_by
        if isinstance(row, Model) and row.url:
            assert recorded["published"]
        elif row.url:
            assert row.sha256 == recorded["resolved"]["backbone"]["hash"]
