"""Config files of `evaluate`: settings of one task, or the list of tasks of a suite."""

import os
from typing import Any

from ml_collections import ConfigDict

from dinov2_jax import config as settings
from dinov2_jax import values

TASKS = ("set", "tasks")
ENTRY = ("task", "train", "val", "tests", "labels", "set")


def read(spec: str) -> dict[str, Any]:
    """What get_config() of a Python file returns, as plain values.

    Args:
        spec: PATH, or PATH:ARGUMENT for get_config(ARGUMENT).
    Raises: ConfigError, one line, if it is wrong or returns no ConfigDict.
    """
    path, _, argument = spec.partition(":")
    return _plain(settings.returned(path, argument, "configs/suites"))


def _plain(config: ConfigDict) -> dict[str, Any]:
    """A config as plain values, in the order in which they were written."""
    # Its own iterators and to_dict() sort.
    names = getattr(config, "_fields", config)
    fields = {name: config[name] for name in names}
    return {k: _plain(v) if isinstance(v, ConfigDict) else v for k, v in fields.items()}


def tasks(spec: str) -> tuple[dict, dict[str, dict]]:
    """Settings of all tasks, and the tasks of a suite by name.

    Args:
        spec: as `read`; its config has `tasks`, name -> task, train, val and so on,
            and may have `set`, settings of all tasks that know them.
    Raises: ValueError, one line, if it is no suite.
    """
    config = read(spec)
    for key in config:
        if key not in TASKS:
            hint = values.hint(key, TASKS, 0.5)
            raise values.ConfigError(
                f"--config={spec} has {key!r}, which is nothing{hint}"
            )
    entries, common = config.get("tasks"), config.get("set", {})
    if not isinstance(entries, dict) or not entries or not isinstance(common, dict):
        raise values.ConfigError(
            f"--config={spec} has no tasks: config.tasks.NAME = {{...}}."
        )
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise values.ConfigError(
                f"--config={spec}: tasks.{name} is no dict of {ENTRY}."
            )
        for key in entry:
            if key not in ENTRY:
                hint = values.hint(key, ENTRY, 0.5)
                raise values.ConfigError(
                    f"--config={spec}: tasks.{name} has no {key!r}{hint}"
                )
        if os.path.basename(name) != name or name in (".", ".."):
            raise values.ConfigError(f"--config={spec}: {name!r} names no folder.")
    return common, entries
