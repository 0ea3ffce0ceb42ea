"""A checkpoint's sampling policy: generation_config.json ⇄ GenerationDefaults.

Hugging Face's names (temperature, top_k, top_p, min_p, repetition_penalty, max_new_tokens, stop_strings,
eos_token_id) and our own default_system. A field that is absent or null takes GenerationDefaults' value; a
field we do not know is reported in a note and not refused, since other tools write many. Refuses to know
requests: their fields win over these elsewhere.

In a Hugging Face folder the numbers that are written count and those that are not are OpenAI's, since a
client of this API expects temperature 1: not the top_k of 50 or the greedy choice that transformers has for
an absent field. Only `"do_sample": false`, said in so many words, makes temperature 0.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from llm.checkpoint.record import some
from llm.config import MAX_DIMENSION, GenerationDefaults
from llm.fields import MAX_JSON_BYTES, Fields, parse_object, read_bytes

MAX_STOPS, MAX_STOP_CHARS, MAX_SYSTEM_CHARS = 16, 256, 4096


def dump_defaults(defaults: GenerationDefaults) -> str:
    """The text of generation_config.json."""
    values: dict[str, object] = {
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "min_p": defaults.min_p,
        "repetition_penalty": defaults.repetition_penalty,
        "max_new_tokens": defaults.max_tokens,
        "stop_strings": list(defaults.stop),
        "default_system": defaults.default_system,
    }
    if defaults.stop_token_ids:
        values["eos_token_id"] = sorted(defaults.stop_token_ids)
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def read_defaults(path: Path) -> tuple[GenerationDefaults, list[str]]:
    """The policy, and a note about fields that were ignored. No file is no policy: OpenAI's defaults.

    Raises:
        CheckpointError: a field of the wrong type or out of range.
    """
    if not path.exists():
        return GenerationDefaults(), [f"sampling: no {path.name}, so temperature 1, top_p 1, no stop strings"]
    fields = Fields(parse_object(read_bytes(path, MAX_JSON_BYTES), str(path)), str(path))
    defaults = replace(_read_numbers(fields), stop_token_ids=read_end_ids(fields))
    if "default_system" in fields:
        defaults = replace(defaults, default_system=_system(fields))
    return defaults, _ignored(fields, path)


def read_hf_defaults(path: Path) -> tuple[GenerationDefaults, list[str]]:
    """The same of a Hugging Face folder; stop_token_ids are the file's eos_token_id, one or several.

    Raises:
        CheckpointError: a field of the wrong type or out of range.
    """
    if not path.exists():
        return GenerationDefaults(), [f"sampling: no {path.name}, so temperature 1, top_p 1"]
    fields = Fields(parse_object(read_bytes(path, MAX_JSON_BYTES), str(path)), str(path))
    defaults = replace(_read_numbers(fields), stop_token_ids=read_end_ids(fields))
    if "do_sample" in fields and not fields.boolean("do_sample"):
        defaults = replace(defaults, temperature=0.0)
    for name in _HOUSEKEEPING:
        fields.skip(name)
    return defaults, _ignored(fields, path)


def read_end_ids(fields: Fields) -> frozenset[int]:
    """The field eos_token_id of a Hugging Face file: absent, null, one id or a list of them."""
    if "eos_token_id" not in fields:
        return frozenset()
    value = fields.take("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    inner = Fields({f"eos_token_id[{i}]": item for i, item in enumerate(ids)}, fields.where)
    return frozenset(inner.whole(name, -1, MAX_DIMENSION) for name in inner.left())  # -1: none


_HOUSEKEEPING = ("transformers_version", "_from_model_config", "bos_token_id", "pad_token_id", "use_cache")
"""Fields of Hugging Face's file that say nothing about how a reply is drawn."""


def _read_numbers(fields: Fields) -> GenerationDefaults:
    policy = GenerationDefaults()
    return GenerationDefaults(
        temperature=fields.number("temperature", 0.0, 2.0) if "temperature" in fields else policy.temperature,
        top_k=fields.whole("top_k", 0, MAX_DIMENSION) if "top_k" in fields else policy.top_k,
        top_p=fields.number("top_p", 1e-6, 1.0) if "top_p" in fields else policy.top_p,
        min_p=fields.number("min_p", 0.0, 1.0) if "min_p" in fields else policy.min_p,
        repetition_penalty=fields.number("repetition_penalty", 0.01, 10.0)
        if "repetition_penalty" in fields
        else policy.repetition_penalty,
        max_tokens=fields.whole("max_new_tokens", 1, MAX_DIMENSION) if "max_new_tokens" in fields else None,
        stop=_stops(fields) if "stop_strings" in fields else policy.stop,
    )


def _ignored(fields: Fields, path: Path) -> list[str]:
    """A note about what is left; a null says nothing."""
    names = [name for name in fields.left() if name in fields]
    return [f"sampling: ignored in {path.name}: {some(names, 12)}"] if names else []


def _stops(fields: Fields) -> tuple[str, ...]:
    stops = fields.items("stop_strings")
    strings = [stop for stop in stops if isinstance(stop, str) and 1 <= len(stop) <= MAX_STOP_CHARS]
    if len(strings) < len(stops) or len(stops) > MAX_STOPS:
        fields.refuse(f"stop_strings must be at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters")
    return tuple(strings)


def _system(fields: Fields) -> str:
    text = fields.text("default_system")
    if len(text) > MAX_SYSTEM_CHARS:
        fields.refuse(f"default_system has {len(text)} characters, the limit is {MAX_SYSTEM_CHARS}")
    return text
