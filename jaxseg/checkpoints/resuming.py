"""Decides which settings of a run may change when it resumes.

Some settings do not alter what is computed, and may always change. Four more may change if the user
asks for it with `config.checkpoint.allow`. Their new values hold from the resumed step on:

- `optim.lr`, `steps`: the rate at step k is that of a run that had the new values all along.
- `optim.clip_norm`: gradients are clipped at the new norm.
- `batch_size`: the images that were already taken are not taken again in the same epoch.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from jaxseg.config import flatten_config
from jaxseg.errors import CheckpointError, ConfigError

MAY_CHANGE = re.compile(
    r"(variant|log_steps|track|init|deterministic|checkpoint\..*|eval\..*|mesh\..*|sharding|profile\..*"
    r"|data\.(root|source|fit|workers|prefetch|skip_corrupt|val_(split|dataset|root|source)|test_.*)"
    r"|model\.(kernels|backbone\.remat(_keeps)?))$"
)
ON_REQUEST = ("batch_size", "optim.clip_norm", "optim.lr", "steps")


def allowed_keys(config: Mapping[str, Any]) -> list[str]:
    """Returns the keys of `config.checkpoint.allow`, which separates them by commas.

    Raises:
      ConfigError: for a key that cannot be changed on request.
    """
    asked = config.get("checkpoint", {}).get("allow", "").split(",")
    keys = [key.strip() for key in asked if key.strip()]
    if unknown := [key for key in keys if key not in ON_REQUEST]:
        raise ConfigError(
            f"config.checkpoint.allow={','.join(unknown)}: a run can resume with another"
            f" {', '.join(ON_REQUEST[:-1])} or {ON_REQUEST[-1]}, but not with this"
        )
    return keys


def config_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str]:
    """Lists the differences between two configs, without those that may always be there.

    Args:
      saved: the config of the checkpoint.
      current: the config of the run.

    Returns:
      For each key that differs, both values in words.
    """
    # Compare both in the form in which they are read back, because JSON turns tuples into lists.
    saved, current = (flatten_config(json.loads(json.dumps(config))) for config in (saved, current))
    absent = "(absent)"
    return {
        key: f"{saved.get(key, absent)!r} in the checkpoint, {current.get(key, absent)!r} now"
        for key in sorted(saved | current)
        if not MAY_CHANGE.match(key) and saved.get(key, absent) != current.get(key, absent)
    }


def accepted_changes(
    saved: Mapping[str, Any], current: Mapping[str, Any], checkpoint: str
) -> list[str]:
    """Returns the changes that the user asked for, a line each.

    Args:
      saved: the config of the checkpoint.
      current: the config of the run.
      checkpoint: the name of the checkpoint, for messages.

    Raises:
      CheckpointError: if other settings differ. The message names them and what can be done.
    """
    different = config_differences(saved, current)
    refused = [key for key in different if key not in allowed_keys(current)]
    if not refused:
        return [f"{key}: {values}" for key, values in different.items()]
    lines = "".join(f"\n  {key}: {different[key]}" for key in refused)
    remedies = ["restore these settings"]
    if all(key in ON_REQUEST for key in refused):
        asked = ",".join(sorted({*refused, *allowed_keys(current)}))
        remedies.append(f"resume with the new ones by --config.checkpoint.allow={asked}")
    remedies.append(
        "or start another run from its weights at step 0, by --config.init=RUN and --workdir NEW"
    )
    raise CheckpointError(
        f"{checkpoint} was made with another config:{lines}\n{', '.join(remedies)}"
    )
