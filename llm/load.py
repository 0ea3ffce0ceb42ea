"""A checkpoint on disk → engines on devices → a TextModel. The only file that knows all of them.

>>> model = load_text_model(open_checkpoint("checkpoints/causette"), devices="cpu")
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypedDict, Unpack

import torch

from llm.adapt.adapter import Adapter, Target
from llm.adapt.base import open_for
from llm.adapt.targets import find_targets
from llm.checkpoint import Checkpoint, load_model
from llm.config import BLOCK_SIZE, NO_ADAPTERS, AdapterRoom, EngineConfig
from llm.engine import Emit, Engine
from llm.errors import CheckpointError, OptionError
from llm.hardware import usable_cores
from llm.placement import KV_SHARE, KVType, Place, RunnerName, kv_room, resolve_places
from llm.runner import Runner
from llm.runner.eager import EagerRunner
from llm.runner.native.runner import NativeRunner
from llm.runner.native.weights import Quantization
from llm.text import TextModel

log = logging.getLogger("llm.load")

NUM_GUESSES = 8
"""Of a draft. Text given back came 3.7 times as fast with 8 (`bench --speculation`); no other was tried."""

NONE: Mapping[str, Adapter] = MappingProxyType({})


class Options(TypedDict, total=False):
    """What the operator may choose of EngineConfig as it is; what is left out has its default there."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_step_ms: int
    num_blocks: int | None
    enable_prefix_caching: bool


class Bounds(Options, total=False):
    """And what depends on the model."""

    max_model_len: int | None


def engine_config(
    checkpoint: Checkpoint,
    *,
    max_model_len: int | None = None,
    kv_room: int | None = None,
    **options: Unpack[Options],
) -> EngineConfig:
    """The engine's bounds for this checkpoint.

    Args:
        max_model_len: None for all of the model's positions, or as many as there is memory for.
        kv_room: tokens for whose keys and values there is memory; None for no limit.
        options: the others; num_blocks None for as many as max_num_seqs sequences need, or as there is memory
            for.

    Raises:
        OptionError: more positions than the model has, too little memory, or bounds that contradict each
            other.
    """
    positions = checkpoint.config.num_positions
    if max_model_len is not None and max_model_len > positions:
        raise OptionError(f"--max-model-len {max_model_len} exceeds the model's {positions} positions")
    length = positions if max_model_len is None else max_model_len
    if kv_room is not None and options.get("num_blocks") is None:
        if kv_room < (2 if max_model_len is None else length):
            asked = "too few to serve it" if max_model_len is None else f"fewer than --max-model-len {length}"
            raise OptionError(f"memory holds {kv_room} tokens beside the model's weights, {asked}")
        if kv_room < length:
            length = kv_room
            log.warning(
                "memory holds %d tokens, the model has %d positions: max_model_len is lowered",
                kv_room,
                positions,
            )
    try:
        config = EngineConfig(length, **options)
        if kv_room is not None and config.num_blocks is None and kv_room < config.total_blocks * BLOCK_SIZE:
            config = replace(config, num_blocks=max(kv_room // BLOCK_SIZE, 1))
        return config
    except ValueError as error:
        raise OptionError(str(error)) from None


def load_text_model(
    checkpoint: Checkpoint,
    *,
    devices: str = "auto",
    dtype: str = "auto",
    runner: RunnerName = "auto",
    quantization: Quantization = "auto",
    kv_cache_dtype: KVType = "auto",
    isa: str | None = None,
    threads: int | None = None,
    spare_core: bool = False,
    num_speculative_tokens: int | None = None,
    name: str | None = None,
    memory_share: float = 1.0,
    adapters: Mapping[str, Adapter] = NONE,
    adapter_room: AdapterRoom | None = None,
    **bounds: Unpack[Bounds],
) -> TextModel:
    """Load one copy of the weights per device and put an engine around each.

    Args:
        checkpoint: opened and proven.
        devices: "auto", one device, or several separated by commas.
        dtype: of an eager runner's weights, activations and KV cache.
        runner, quantization, kv_cache_dtype, isa: what computes on a CPU; see `resolve_places`.
        threads: that compute on the CPU; every usable core when None. Of the eager runner's torch
            gets them for the whole process, else one.
        spare_core: without `threads`, an eager runner leaves one core to others; see `_threads`.
        num_speculative_tokens: of EngineConfig; None for what suits the runner.
        name: model id; the checkpoint's own when None.
        memory_share: of the memory for all models, what this one may plan with.
        adapters: for this base, by the name that follows the model's.
        adapter_room: for these and others that may come; None for these alone.
        bounds: of the engine.

    Raises:
        CheckpointError, DeviceError, OptionError: one line each.
    """
    places = resolve_places(
        checkpoint,
        devices,
        dtype,
        runner=runner,
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        isa=isa,
    )
    adapter_room = _adapter_room(adapters, adapter_room)
    parts = _parts(checkpoint, adapters, adapter_room)
    room = kv_room(checkpoint, places, KV_SHARE * memory_share, parts)
    guesses = _num_guesses(places, num_speculative_tokens)
    config = replace(engine_config(checkpoint, kv_room=room, **bounds), num_speculative_tokens=guesses)
    threads = _threads(spare_core and not places[0].native) if threads is None else threads
    return _text_model(name or checkpoint.name, checkpoint, config, places, threads, adapters, adapter_room)


def _text_model(
    name: str,
    checkpoint: Checkpoint,
    config: EngineConfig,
    places: list[Place],
    threads: int,
    adapters: Mapping[str, Adapter],
    room: AdapterRoom,
) -> TextModel:
    """The model around an engine at each place."""
    return TextModel(
        name=name,
        source=checkpoint.path.name,
        fingerprint=f"fp_{checkpoint.digest[:10]}_{places[0].label}",
        tokenizer=checkpoint.tokenizer,
        template=checkpoint.template,
        defaults=checkpoint.defaults,
        max_model_len=config.max_model_len,
        adapters=adapters,
        adapter_room=room,
        read_adapter=lambda path: open_for(checkpoint, path, room.max_rank)[0],
        make_engines=lambda emit: [_engine(checkpoint, config, p, threads, room, emit) for p in places],
    )


def _adapter_room(adapters: Mapping[str, Adapter], asked: AdapterRoom | None) -> AdapterRoom:
    """What was asked for, if these have room in it."""
    rank = max((part.rank for adapter in adapters.values() for part in adapter.parts), default=0)
    if asked is None:
        return AdapterRoom(len(adapters), rank)
    if len(adapters) > asked.num_adapters:
        raise OptionError(f"--max-loras {asked.num_adapters}: fewer than the {len(adapters)} of --adapter")
    if rank > asked.max_rank:
        raise OptionError(f"--max-lora-rank {asked.max_rank}: one of --adapter has rank {rank}")
    return asked


def _parts(
    checkpoint: Checkpoint, adapters: Mapping[str, Adapter], room: AdapterRoom
) -> list[list[tuple[Target, int]]]:
    """Targets and ranks of these adapters, and of as many of the largest as may come."""
    given = [[(part.target, part.rank) for part in adapter.parts] for adapter in adapters.values()]
    largest = [(target, room.max_rank) for target in find_targets(checkpoint.config)]
    return given + [largest] * (room.num_adapters - len(given))


def _engine(
    checkpoint: Checkpoint,
    config: EngineConfig,
    place: Place,
    threads: int,
    adapter_room: AdapterRoom,
    emit: Emit,
) -> Engine:
    """The model on one device, and what drives it."""
    vocab_size = min(checkpoint.config.vocab_size, checkpoint.tokenizer.vocab_size)
    runner = make_runner(checkpoint, config, place, threads=threads, adapter_room=adapter_room)
    return Engine(runner, config, vocab_size, emit, str(place.device))


def _num_guesses(places: list[Place], asked: int | None) -> int:
    """Unless asked for, guesses are computed only where a row's bits do not hang on how many there are: the
    native runner's promise.
    """
    if asked is not None:
        return asked
    return NUM_GUESSES if all(place.native for place in places) else 0


def make_runner(
    checkpoint: Checkpoint,
    config: EngineConfig,
    place: Place,
    *,
    threads: int,
    adapter_room: AdapterRoom = NO_ADAPTERS,
) -> Runner:
    """What computes this checkpoint there. Sets torch's threads for the whole process: the native runner has
    its own, and torch's would only be in their way.

    Raises:
        CheckpointError, OptionError: one line each.
    """
    bounded = _bounded(checkpoint, config.max_model_len)
    if place.library is None:
        torch.set_num_threads(threads)
        return EagerRunner(load_model(bounded, place.device, place.dtype), config)
    torch.set_num_threads(1)
    try:
        return NativeRunner(
            bounded.config,
            bounded.weights(),
            config,
            quantization=place.quantization,
            half_kv=place.half_kv,
            num_threads=threads,
            library=place.library,
            adapter_room=adapter_room,
        )
    except MemoryError as error:
        raise CheckpointError(f"{checkpoint.path}: does not fit in memory: {error}") from None


def _threads(spare_core: bool) -> int:
    """Every usable core, or one less: torch's threads would fight an event loop and local clients for it. On
    two cores, 148 instead of 111 tokens/s to one stream of a 12 M model. The native runner's threads wait for
    work, not for each other, and need no such thing.
    """
    return max(1, usable_cores() - spare_core)


def _bounded(checkpoint: Checkpoint, max_model_len: int) -> Checkpoint:
    """Rotary positions are a table, as long as sequences can get here; learned ones are weights."""
    if checkpoint.config.rope_theta is None:
        return checkpoint
    return replace(checkpoint, config=replace(checkpoint.config, num_positions=max_model_len))
