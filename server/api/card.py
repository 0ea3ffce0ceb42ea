"""A model as clients are told of it: OpenAI's model object and what a person wants to know besides."""

from __future__ import annotations

from typing import Any

from llm.text import TextModel


def card(model: TextModel) -> dict[str, Any]:
    """See shapes.ModelCard."""
    defaults = model.defaults
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "causerie",
        "max_model_len": model.max_model_len,
        "checkpoint": model.source,
        "default_sampling": {
            "temperature": defaults.temperature,
            "top_p": defaults.top_p,
            "top_k": defaults.top_k,
            "min_p": defaults.min_p,
            "repetition_penalty": defaults.repetition_penalty,
            "max_tokens": defaults.max_tokens,
            "stop": list(defaults.stop),
        },
    }
