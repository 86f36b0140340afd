"""Reads settings that hold several names."""

from collections.abc import Sequence


def listed_names(setting: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the names in a setting.

    A command line gives several in one text, with commas between them.

    >>> listed_names(("tensorboard, wandb",))
    ('tensorboard', 'wandb')
    >>> listed_names("")
    ()

    Args:
      setting: a text, or several.
    """
    texts = (setting,) if isinstance(setting, str) else setting
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())
