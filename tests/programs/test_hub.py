"""Models on the Hugging Face Hub, with a hub on 127.0.0.1."""

import json
import sys

import jax
import numpy as np
import pytest

from jaxseg import pretrained
from jaxseg.checkpoints.initial_weights import load_initial_weights
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
    url = segmenter.push_to_hub("me/streets", license="apache-2.0")
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


def test_the_card_has_the_scores_of_its_checkpoint(tmp_path):
    from huggingface_hub import ModelCard

    config, variables = random_model()
    save_weights(tmp_path / "run", variables, config.to_dict())
    segmenter = Segmenter.from_checkpoint(tmp_path / "run")
    for step, expected in ((1, []), (0, [82.58, 90.0, 97.0])):
        (tmp_path / "run" / "metrics.json").write_text(
            json.dumps(SCORES | EVALUATED | {"step": step})
        )
        folder = segmenter.save_pretrained(tmp_path / f"model_{step}", license="mit")
        card = ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
        results = card.data.eval_results or []
        assert [result.metric_value for result in results] == expected
        assert card.data.license == "mit"
        assert card.data.library_name == "jaxseg"
        assert card.data.datasets == ["cityscapes"]
        assert ("| mIoU | 82.58 |" in card.text) == bool(expected)
    assert "On `cityscapes`, `val`, at one scale:" in card.text
    assert f'Segmenter.from_pretrained("{folder}")' in card.text
    assert "18. bicycle" in card.text


def test_metrics_that_do_not_say_what_they_are_of_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no dataset and no protocol and no split"):
        random_segmenter().save_pretrained(tmp_path, metrics=SCORES)
    assert not list(tmp_path.iterdir())


def test_a_config_of_another_library_is_refused(tmp_path):
    folder = random_segmenter().save_pretrained(tmp_path / "model")
    (folder / "config.json").write_text('{"architectures": ["SomethingElse"]}')
    with pytest.raises(ConfigError, match="is not the config of a jaxseg model"):
        pretrained.find(folder)
