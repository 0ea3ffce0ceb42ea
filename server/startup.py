"""Settings → loaded models, and the lines an operator reads while that happens.

Refuses to know sockets and signals. What is wrong with a checkpoint, a device or an option is one clear line
(`llm.errors.CauserieError`), never a traceback.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.adapt.base import open_for
from llm.chat.template import Message, encode_segments
from llm.checkpoint import find_checkpoint, locate_checkpoint, open_checkpoint, prove_prompts
from llm.checkpoint.record import expected_shapes
from llm.config import AdapterRoom
from llm.errors import OptionError
from llm.load import load_text_model
from llm.text import TextModel
from server.adapters import NamedAdapter, find_adapters
from server.settings import Settings

log = logging.getLogger("causerie.server")

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "what is a token?"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to start, and what the log says about it."""

    model: TextModel
    summary: str


@dataclass(frozen=True, slots=True)
class Named:
    """One --checkpoint: where it is, the id it was given, and why it is served."""

    path: Path
    name: str | None
    reason: str


def load_models(settings: Settings) -> list[TextModel]:
    """`load`, and what an operator reads of it.

    Raises:
        CauserieError: as `load`.
    """
    loaded = load(settings)
    for one in loaded:
        log.info("%s", one.summary)
        for line in prompt_lines(one.model) if settings.show_prompt else ():
            print(line, flush=True)
    return [one.model for one in loaded]


def load(settings: Settings) -> list[Loaded]:
    """Find, open, prove and load the checkpoints that settings name, or the default one; the first is the
    default model.

    Raises:
        CauserieError: a checkpoint, device or option that cannot be served.
    """
    loaded: list[Loaded] = []
    found, adapters = find_named(settings), find_adapters(settings.adapter)
    for named in found:
        loaded.append(_load(named, settings, 1 / len(found), adapters, is_first=not loaded))
        served = [model.name for one in loaded for model in one.model.served]
        if twice := [name for name in served if served.count(name) > 1]:
            raise OptionError(
                f"--checkpoint {named.path}: another model is named {twice[0]!r} already; "
                "write --checkpoint NAME=PATH"
            )
    names = [one.model.name for one in loaded]
    if unused := [one for one in adapters if not any(one.is_on(n, is_first=n == names[0]) for n in names)]:
        raise OptionError(f"--adapter {unused[0].text}: no model is named {unused[0].base!r}")
    return loaded


def find_named(settings: Settings) -> list[Named]:
    """The checkpoints of --checkpoint, or the default one.

    Raises:
        CheckpointError: none is named, and there is no default.
        OptionError: one name for several checkpoints, or two for one.
    """
    if not settings.checkpoint:
        path, reason = find_checkpoint(ROOT)
        return [Named(path, settings.served_model_name, reason)]
    if len(settings.checkpoint) > 1 and settings.served_model_name is not None:
        raise OptionError(
            "--served-model-name names one model; with several, write --checkpoint NAME=PATH for each"
        )
    return [_named(text, settings.served_model_name) for text in settings.checkpoint]


def _named(text: str, served_name: str | None) -> Named:
    """PATH or NAME=PATH; a path that is not there may be the name of a folder in checkpoints/."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name or not name or Path(text).exists():
        name, path = "", text
    if name and served_name is not None:
        raise OptionError(f"--checkpoint {text} and --served-model-name {served_name}: one name, not two")
    found = locate_checkpoint(Path(path), ROOT)
    return Named(found, served_name or name or None, "named by --checkpoint")


def _load(
    named: Named,
    settings: Settings,
    memory_share: float,
    adapters: Sequence[NamedAdapter],
    *,
    is_first: bool,
) -> Loaded:
    level = logging.WARNING if "WARNING" in named.reason else logging.INFO
    log.log(level, "checkpoint %s (%s)", named.path, named.reason)
    checkpoint = open_checkpoint(named.path, num_heads=settings.n_head)
    for note in checkpoint.notes:
        log.info("checkpoint: %s", note)
    for warning in checkpoint.warnings:
        log.warning("checkpoint: %s", warning)
    num_samples = prove_prompts(checkpoint)
    if num_samples:
        log.info("prompt proof: %d training conversations render as they were trained", num_samples)
    else:
        log.info("prompt proof: none, the checkpoint carries no training conversations")
    name = named.name or checkpoint.name
    own = [one for one in adapters if one.is_on(name, is_first=is_first)]
    if len({one.name for one in own}) < len(own):
        raise OptionError(
            f"--adapter {own[-1].text}: another adapter is named '{name}:{own[-1].name}' already"
        )
    model = load_text_model(
        checkpoint,
        devices=settings.device,
        dtype=settings.dtype,
        runner=settings.runner,
        quantization=settings.quantization,
        kv_cache_dtype=settings.kv_cache_dtype,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_step_ms=settings.max_step_ms,
        num_blocks=settings.num_gpu_blocks_override,
        enable_prefix_caching=settings.enable_prefix_caching,
        num_speculative_tokens=settings.num_speculative_tokens,
        threads=settings.threads,
        spare_core=True,
        name=name,
        memory_share=memory_share,
        adapters={one.name: open_for(checkpoint, one.path)[0] for one in own},
        adapter_room=_adapter_room(settings),
    )
    places = ", ".join(f"{engine.runner.about} on {engine.device}" for engine in model.engines)
    num_parameters = sum(math.prod(shape) for shape in expected_shapes(checkpoint.config).values())
    summary = (
        f"model {model.name}: {checkpoint.kind} {checkpoint.path} ({checkpoint.architecture}), "
        f"{num_parameters / 1e6:.1f}M parameters, {places}, max_model_len {model.max_model_len}"
        + "".join(f", adapter {one.name} ({one.path})" for one in own)
    )
    return Loaded(model, summary)


def _adapter_room(settings: Settings) -> AdapterRoom | None:
    """For adapters that come while the server runs; None where those of --adapter are all there will be."""
    if settings.adapter_dir is None:
        return None
    if not settings.adapter_dir.is_dir():
        raise OptionError(f"--adapter-dir {settings.adapter_dir}: no such folder")
    return AdapterRoom(settings.max_loras, settings.max_lora_rank)


def prompt_lines(model: TextModel) -> list[str]:
    """What --show-prompt prints: a question as the model reads it, and its token ids."""
    segments = model.template.render([Message("user", QUESTION)])
    ids = encode_segments(model.tokenizer, segments)[0]
    return ["".join(segment.text for segment in segments), f"{len(ids)} token ids: {ids}"]


def curl_line(url: str, *, with_key: bool) -> str:
    """A command to paste into another terminal."""
    body = json.dumps(
        {"messages": [{"role": "user", "content": QUESTION}], "stream": True}, separators=(",", ":")
    )
    key = ' -H "authorization: Bearer $CAUSERIE_API_KEY"' if with_key else ""
    return (
        f"curl -N {url}/v1/chat/completions -H 'content-type: application/json'{key} -d {shlex.quote(body)}"
    )


def server_url(host: str, port: int) -> str:
    """An address a client on this machine can use."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_door_lines(host: str) -> list[str]:
    """The warning of a server that anyone may use."""
    text = [
        f"ANYONE WHO CAN REACH {host} CAN USE THIS SERVER: it listens beyond this machine and no key is set.",
        "Set CAUSERIE_API_KEY, or listen on 127.0.0.1 , or put a proxy that asks for one in front.",
    ]
    rule = "!" * max(map(len, text))
    return [rule, *text, rule]
