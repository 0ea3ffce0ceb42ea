"""Training wrappers: the state dict among what else a training script saved.

    {"model": …, "optimizer": …, "epoch": 3}        {"model_state_dict": …, "hparams": {"n_head": 4}}

A bare state dict passes through. Only the state dict's tensors are looked at: an optimizer's stay on disk.
Of the settings beside the weights it knows only how a number of heads is called. Refuses to know what the
tensors make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from llm.checkpoint.pt.names import is_adapter, recognise
from llm.checkpoint.pt.shapes import arrange
from llm.checkpoint.record import some
from llm.checkpoint.torch_file import State, check_state, is_tensor, read_in_turn
from llm.config import MAX_DIMENSION
from llm.errors import CheckpointError

_MODEL_KEYS = "model model_state_dict state_dict model_state module network net weights".split()
_SETTINGS = """model_args config model_config hparams hyper_parameters hyperparameters args cfg
    params""".split()
_HEADS = "n_head n_heads num_heads num_attention_heads".split()


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """A state dict, what lay beside it, and a line on where it was found."""

    state: State
    beside: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def unwrap(path: Path, loaded: object) -> Unwrapped:
    """Find the state dict in what a torch file holds.

    Raises:
        CheckpointError: there is none, more than one, or its tensors are not plain ones.
    """
    if not isinstance(loaded, Mapping) or not any(isinstance(v, Mapping) for v in loaded.values()):
        return Unwrapped(_whole_model(path, check_state(path, loaded)))
    found = {key: value for key, value in loaded.items() if _is_state_dict(value)}
    if not found:
        raise CheckpointError(f"{path}: no state dict in {some(loaded)}: save model.state_dict()")
    key = _choose(found)
    if key is None:
        raise CheckpointError(f"{path}: {some(found)} are all state dicts: save one alone")
    beside = {name: other for name, other in loaded.items() if isinstance(name, str) and name != key}
    note = f"wrapper: the state dict is {some([key])}, left aside {some(beside) or 'nothing'}"
    return Unwrapped(_whole_model(path, check_state(path, found[key])), beside, [note])


def _whole_model(path: Path, state: State) -> State:
    if adapters := [name for name in state if is_adapter(name)]:
        raise CheckpointError(
            f"{path}: holds adapter weights ({some(adapters, 2)}), no whole model: merge them into their "
            "base model first (litgpt merge_lora) and serve that"
        )
    return state


def _choose(found: Mapping[object, Mapping[str, object]]) -> object | None:
    """The key of the weights: of the state dicts with names we know, the only one or the usual one."""
    known = [key for key, state in found.items() if any(map(recognise, state))] or list(found)
    usual = next((key for key in _MODEL_KEYS if key in known), None)
    return known[0] if len(known) == 1 else usual


def _is_state_dict(value: object) -> bool:
    """Names and tensors, nothing else. An optimizer's state is numbered and nested."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and is_tensor(tensor) for name, tensor in value.items())
    )


def heads_beside(beside: Mapping[str, object]) -> dict[str, int]:
    """Numbers of heads in the settings beside a state dict: where each stands → the number."""
    places = {name: value for name in _SETTINGS if isinstance(value := beside.get(name), Mapping)}
    for name, settings in list(places.items()):
        nested = {f"{name}.{key}": settings[key] for key in ("model", *_SETTINGS) if key in settings}
        places |= {where: value for where, value in nested.items() if isinstance(value, Mapping)}
    counts = {}
    for where, settings in ({"": beside} | places).items():
        for name in _HEADS:
            number = settings.get(name)
            if type(number) is int and 1 <= number <= MAX_DIMENSION:
                counts[f"{where}.{name}".removeprefix(".")] = number
    return counts


def weights_of(path: Path, names: Sequence[str]) -> Callable[[], Iterator[tuple[str, Tensor]]]:
    """What yields these parameters, by our names, from the state dict in a torch file that was understood."""
    return lambda: read_in_turn(path, names, lambda loaded: arrange(path, unwrap(path, loaded).state))
