"""One file per run: `--config run.yaml` holds any of a command's flags by name; flags beside it win.

A run's resolved flags are saved as training.json, which is such a file (JSON is YAML). Names may be written
with - or _. Refuses to know what a flag means.

    $ causerie train sft --config checkpoints/mine/training.json --out checkpoints/again
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from llm.errors import OptionError

NOT_SAVED = ("config", "resume")
"""Flags that say how a run was called, not what it is."""


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    """--config, for `parse`."""
    parser.add_argument("--config", type=Path, help="YAML or JSON with any of these flags; flags win")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags, over those of the file of --config, over the defaults.

    Raises:
        OptionError: the file cannot be read, or a name or value in it cannot be used.
    """
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    if "config" in actions:
        first = argparse.ArgumentParser(add_help=False)
        add_config_flag(first)
        path = first.parse_known_args(argv)[0].config
        for name, value in ({} if path is None else read_config(path, actions)).items():
            actions[name].default, actions[name].required = value, False
    return parser.parse_args(argv)


def read_config(path: Path, actions: Mapping[str, argparse.Action]) -> dict[str, object]:
    """Values of a configuration file, as the flags would have them; null is left out.

    Raises:
        OptionError: names the file, and the flag.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path}: cannot read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise OptionError(f"{path}: expected names and values, got {type(values).__name__}")
    known = [name for name in actions if name not in ("help", *NOT_SAVED)]
    read = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1, 0.0)[0].replace("_", "-")
            raise OptionError(f"{path}: no option {str(key)[:64]!r}, the nearest is {nearest!r}")
        if value is not None:
            read[name] = _value(f"{path}: {key}", actions[name], value)
    return read


def _value(where: str, action: argparse.Action, value: object) -> object:
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise OptionError(f"{where} must be true or false, got {value!r}")
        return value
    if action.nargs is None:
        return _one(where, action, value)
    if not isinstance(value, list):
        value = [value]
    return [_one(where, action, item) for item in value]


def _one(where: str, action: argparse.Action, value: object) -> object:
    convert = action.type if callable(action.type) else str
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        converted: object = convert(str(value))
    except (ValueError, argparse.ArgumentTypeError):
        raise OptionError(f"{where}: {value!r} is no {getattr(convert, '__name__', 'value')}") from None
    if action.choices is not None and converted not in action.choices:
        raise OptionError(f"{where} must be {', '.join(map(str, action.choices))}, got {value!r}")
    return converted


def write_config(path: Path, options: argparse.Namespace, **resolved: object) -> None:
    """Save a run's flags, those left out with their defaults.

    Args:
        resolved: what a flag came to, where that was only known later.
    """
    values = {name: value for name, value in vars(options).items() if name not in NOT_SAVED} | resolved
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, indent=2, default=str, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)
