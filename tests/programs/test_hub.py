"""Models on the Hugging Face Hub, with a hub on 127.0.0.1."""

import json
import sys

import jax
import numpy as np
import pytest

from jaxseg import pretrained
from jaxseg.checkpoints.initial_weights import check_available, load_initial_weights
from jaxseg.checkpoints.weights import save_weights
from jaxseg.errors import CheckpointError, ConfigError, OutputError
from jaxseg.segmenter import Segmenter
from support.fake_hub import serving_hub
from support.random_segmenters import photo, random_model, random_segmenter

SCORES = {"mIoU": 0.8258, "mAcc": 0.9, "aAcc": 0.97, "mDice": 0.9}
EVALUATED = {"step": 0, "dataset": "cityscapes", "split": "val", "protocol": "ss"}


def import_again(monkeypatch):
    """huggingface_hub reads its settings when it is imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    with serving_hub() as hub:
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": "hf_none",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "no_proxy": "*",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        import_again(monkeypatch)
        yield hub
    import_again(monkeypatch)


def test_a_published_model_has_the_same_bits_and_needs_the_hub_once(hub, monkeypatch):
    segmenter = random_segmenter()
    url = segmenter.push_to_hub("hf://me/streets", license="apache-2.0")
    assert url == f"{hub.url}/me/streets"
    assert set(hub.repositories["me/streets"]) >= {"model.safetensors", "config.json", "README.md"}
    expected = segmenter.probabilities(photo((50, 70)))
    fetched = Segmenter.from_pretrained("hf://me/streets")
    np.testing.assert_array_equal(fetched.probabilities(photo((50, 70))), expected)
    assert fetched.config.to_dict() == segmenter.config.to_dict()
    commit = hub.commit_of("me/streets")
    assert pretrained.find(f"hf://me/streets@{commit}") == pretrained.find("hf://me/streets")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import_again(monkeypatch)
    hub.repositories.clear()
    again = Segmenter.from_pretrained("hf://me/streets")
    np.testing.assert_array_equal(again.probabilities(photo((50, 70))), expected)


def test_training_starts_from_a_published_model(hub):
    segmenter = random_segmenter()
    segmenter.push_to_hub("me/streets")
    _, fresh = random_model(seed=1)
    fresh = jax.tree.map(jax.numpy.asarray, fresh)
    loaded, origin = load_initial_weights("hf://me/streets", fresh, "the model")
    jax.tree.map(np.testing.assert_array_equal, loaded, segmenter._variables)
    assert "streets" in origin


def test_a_file_of_any_repository_is_a_pytorch_file(hub, tmp_path):
    folder = random_segmenter().save_pretrained(tmp_path / "model")
    content = (folder / "model.safetensors").read_bytes()
    hub.repositories["they/zoo"] = {"weights/model.safetensors": content}
    index = {"weight_map": {"any": "model.safetensors"}}
    hub.repositories["they/zoo"]["weights/model.safetensors.index.json"] = json.dumps(
        index
    ).encode()
    config, _ = random_model()
    found = pretrained.find("hf://they/zoo/weights/model.safetensors", config)
    assert found.name == "0"
    with pytest.raises(ConfigError, match="does not say which model"):
        pretrained.find("hf://they/zoo/weights/model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"did not publish it(.|\n)*weights/model\.safetensors"
    ):
        pretrained.find("hf://they/zoo")


def test_what_is_not_there_is_named(hub):
    with pytest.raises(CheckpointError, match="hf://me/nothing cannot be fetched"):
        Segmenter.from_pretrained("hf://me/nothing")
    with pytest.raises(ConfigError, match="OWNER/REPOSITORY"):
        Segmenter.from_pretrained("hf://streets")


def test_a_refused_upload_says_how_to_log_in(hub, monkeypatch):
    monkeypatch.setattr(hub, "post", lambda *_: None)
    with pytest.raises(OutputError, match="hf auth login"):
        random_segmenter().push_to_hub("me/streets")
    with pytest.raises(ConfigError, match="OWNER/REPOSITORY"):
        random_segmenter().push_to_hub("streets")


def saved_run(folder, step):
    """The directory of a run whose only checkpoint is of this step."""
    config, variables = random_model()
    save_weights(folder, variables, config.to_dict())
    (folder / "checkpoints" / "0").rename(folder / "checkpoints" / str(step))
    return folder


def test_the_card_has_the_scores_of_its_checkpoint(tmp_path):
    from huggingface_hub import ModelCard

    run = saved_run(tmp_path / "run", 7)
    segmenter = Segmenter.from_checkpoint(run)
    for step, expected in ((6, []), (7, [82.58, 90.0, 97.0])):
        (run / "metrics.json").write_text(json.dumps(SCORES | EVALUATED | {"step": step}))
        folder = segmenter.save_pretrained(tmp_path / f"model_{step}", license="mit")
        card = ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
        results = card.data.eval_results or []
        assert [result.metric_value for result in results] == expected
        assert card.data.license == "mit"
        assert card.data.library_name == "jaxseg"
        assert card.data.datasets == ["cityscapes"]
        assert ("| mIoU | 82.58 |" in card.text) == bool(expected)
    assert "On `cityscapes`, `val`, at one scale:" in card.text
    assert "| steps | 7 of 10 |" in card.text
    assert f'Segmenter.from_pretrained("{folder}")' in card.text
    assert "18. bicycle" in card.text
    with pytest.raises(ConfigError, match="metrics are of step 6, and the model is of step 7"):
        segmenter.save_pretrained(tmp_path / "other", metrics=SCORES | EVALUATED | {"step": 6})


def test_converted_weights_have_no_training_in_their_card(tmp_path):
    folder = Segmenter.from_checkpoint(saved_run(tmp_path / "run", 0)).save_pretrained(
        tmp_path / "model"
    )
    assert "These weights were converted." in (folder / "README.md").read_text()


def test_scores_are_of_the_dataset_that_was_evaluated(tmp_path):
    from huggingface_hub import ModelCard

    metrics = SCORES | EVALUATED | {"dataset": "mapillary", "step": 7}
    segmenter = Segmenter.from_checkpoint(saved_run(tmp_path / "run", 7))
    folder = segmenter.save_pretrained(tmp_path / "model", metrics=metrics)
    card = ModelCard.load(folder / "README.md")
    assert {result.dataset_name for result in card.data.eval_results} == {"mapillary"}
    assert "On `mapillary`" in card.text


def test_a_run_with_an_exported_file_is_still_a_run(tmp_path):
    run = saved_run(tmp_path / "run", 7)
    segmenter = Segmenter.from_checkpoint(run)
    with pytest.raises(ConfigError, match="is the directory of a run"):
        segmenter.save_pretrained(run)
    folder = segmenter.save_pretrained(tmp_path / "model")
    for name in ("model.safetensors", "config.json"):
        (run / name).write_bytes((folder / name).read_bytes())
    assert pretrained.find(run) == run / "checkpoints" / "7"
    assert check_available(str(run)) == run
    assert check_available(str(folder)) == folder / "model.safetensors"


def test_a_page_of_ones_own_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a bucket taken for a folder would be written
    (tmp_path / "README.md").write_text("# My project")
    with pytest.raises(ConfigError, match=r"README\.md is not a model card"):
        random_segmenter().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="written into a folder of this machine"):
        random_segmenter().save_pretrained("gs://bucket/model")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    for _ in range(2):  # one of its own is replaced
        random_segmenter().save_pretrained(tmp_path / "model")


def test_metrics_that_do_not_say_what_they_are_of_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no dataset and no protocol and no split"):
        random_segmenter().save_pretrained(tmp_path, metrics=SCORES)
    assert not list(tmp_path.iterdir())


def test_a_config_of_another_library_is_refused(tmp_path):
    folder = random_segmenter().save_pretrained(tmp_path / "model")
    (folder / "config.json").write_text('{"architectures": ["SomethingElse"]}')
    with pytest.raises(ConfigError, match="is not the config of a jaxseg model"):
        pretrained.find(folder)
