"""Fetches files from the Hugging Face Hub, and publishes folders there.

It needs the package huggingface_hub, which the extra `hub` installs. Files that were fetched stay
in that package's own cache, and are used from there without a network.
"""

import json
import pathlib
import re
import types

from jaxseg.errors import CheckpointError, ConfigError, OutputError, first_few, first_line
from jaxseg.workdir import CHECKPOINTS, AnyPath

PREFIX = "hf://"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?")
# The files of a model that jaxseg has published.
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def fetch(address: str) -> pathlib.Path:
    """Downloads a model, unless it is in the cache.

    Args:
      address: hf://OWNER/REPOSITORY for a model that `upload` has published. For a PyTorch file in
        any repository, hf://OWNER/REPOSITORY/FILE. After the repository, @REVISION may name a
        branch, a tag or a commit, without "/".

    Returns:
      The folder of the model, or the file.

    Raises:
      ConfigError: if the address has another form, or huggingface_hub is not installed.
      CheckpointError: if the repository or the file does not exist, or cannot be downloaded.
    """
    parts = ADDRESS.fullmatch(address)
    if not parts:
        raise ConfigError(f"{address}: must be hf://OWNER/REPOSITORY[@REVISION][/FILE]")
    repository, revision, file = parts.groups()
    hub = client()
    try:
        if file is None:
            wanted = [WEIGHTS, CONFIG]
            options = {"revision": revision, "allow_patterns": wanted}
            folder = pathlib.Path(hub.snapshot_download(repository, **options))
            if is_published(folder):
                return folder
            files = hub.list_repo_files(repository, revision=revision)
        else:
            path = pathlib.Path(hub.hf_hub_download(repository, file, revision=revision))
            if file.endswith(".index.json"):
                parent = pathlib.PurePosixPath(file).parent
                for part in sorted(set(json.loads(path.read_text())["weight_map"].values())):
                    hub.hf_hub_download(repository, str(parent / part), revision=revision)
            return path
    except Exception as error:  # of many kinds, by the library
        raise CheckpointError(f"{address} cannot be fetched: {first_line(error)}") from error
    raise CheckpointError(
        f"{address} has no {' and '.join(wanted)}, so jaxseg did not publish it. If one of its"
        f" files is a PyTorch checkpoint, name it: {address}/FILE{first_few(files, 20)}"
    )


def is_published(folder: AnyPath) -> bool:
    """Returns whether a folder is a published model, and not a run with an exported file."""
    files = [folder / name for name in (WEIGHTS, CONFIG)]
    return all(file.is_file() for file in files) and not (folder / CHECKPOINTS).exists()


def check_repository(repository: str):
    """Checks the name of a repository.

    Raises:
      ConfigError: if it is not OWNER/REPOSITORY.
    """
    if not REPOSITORY.fullmatch(repository):
        raise ConfigError(f"{repository!r} is not the name of a repository: OWNER/REPOSITORY")


def upload(folder: pathlib.Path, repository: str, private: bool = False) -> str:
    """Publishes the files of a folder as a repository, which is made if it does not exist.

    Args:
      folder: the folder.
      repository: OWNER/REPOSITORY.
      private: whether a new repository is visible only to its owner.

    Returns:
      The URL of the repository.

    Raises:
      ConfigError: if huggingface_hub is not installed.
      OutputError: if the Hub refuses.
    """
    hub = client()
    try:
        url = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # of many kinds, by the library
        raise OutputError(
            f"cannot publish {repository}: {first_line(error)}; `hf auth login` stores a token that"
            " may write"
        ) from error
    return str(url)


def client() -> types.ModuleType:
    """Returns huggingface_hub.

    Raises:
      ConfigError: if it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            "the Hugging Face Hub needs a package: pip install 'jaxseg[hub]'"
        ) from error
    return huggingface_hub
