"""A checkpoint's sampling policy: generation_config.json ⇄ GenerationDefaults.

Hugging Face's names (temperature, top_k, top_p, max_new_tokens, stop_strings) and our own default_system. A
field that is absent or null takes GenerationDefaults' value; a field we do not know is reported in a note and
not refused, since other tools write many. Refuses to know requests: their fields win over these elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path

from llm.checkpoint.fields import MAX_JSON_BYTES, Fields, parse_object, read_bytes
from llm.config import MAX_DIMENSION, GenerationDefaults

MAX_STOPS, MAX_STOP_CHARS, MAX_SYSTEM_CHARS = 16, 256, 4096


def dump_defaults(defaults: GenerationDefaults) -> str:
    """The text of generation_config.json."""
    values = {
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "max_new_tokens": defaults.max_tokens,
        "stop_strings": list(defaults.stop),
        "default_system": defaults.default_system,
    }
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def read_defaults(path: Path) -> tuple[GenerationDefaults, list[str]]:
    """The policy, and a note about fields that were ignored. No file is no policy: OpenAI's defaults.

    Raises:
        CheckpointError: a field of the wrong type or out of range.
    """
    if not path.exists():
        return GenerationDefaults(), [f"sampling: no {path.name}, so temperature 1, top_p 1, no stop strings"]
    fields = Fields(parse_object(read_bytes(path, MAX_JSON_BYTES), str(path)), str(path))
    policy = GenerationDefaults()
    defaults = GenerationDefaults(
        temperature=fields.number("temperature", 0.0, 2.0) if "temperature" in fields else policy.temperature,
        top_k=fields.whole("top_k", 0, MAX_DIMENSION) if "top_k" in fields else policy.top_k,
        top_p=fields.number("top_p", 1e-6, 1.0) if "top_p" in fields else policy.top_p,
        max_tokens=fields.whole("max_new_tokens", 1, MAX_DIMENSION) if "max_new_tokens" in fields else None,
        stop=_stops(fields) if "stop_strings" in fields else policy.stop,
        default_system=_system(fields) if "default_system" in fields else None,
    )
    ignored = [name for name in fields.left() if name in fields]  # a null says nothing
    return defaults, [f"sampling: ignored in {path.name}: {', '.join(ignored)[:200]}"] if ignored else []


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
