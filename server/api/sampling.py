"""Fields that say how replies are drawn → SamplingParams. `None` is not sent, and is tested with `is None`.

What a request leaves out comes from the checkpoint's own policy; its stop strings join the template's.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from llm.config import GenerationDefaults, SamplingParams
from llm.text import TextModel
from server.api.fields import Schema
from server.errors import invalid

T = TypeVar("T")

SEED_HEADER = "x-seed"
MAX_CHOICES = 8
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_STOP_IDS = 64
MAX_BIASES = 1024
MAX_TOKENS = 1 << 31
MAX_TOP_LOGPROBS = 20
MAX_SCORES = 1 << 19
"""Log probabilities of prompts in one reply: about 20 MB of JSON, and half a second to write them."""
MAX_PRIORITY = 1 << 31
MAX_SALT_CHARS = 256
INT64 = 1 << 63
MADE_SEED_BITS = 53
"""A seed we choose survives clients whose numbers are doubles: jq, JavaScript."""


def _stop_list(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if value is not None and not isinstance(value, list):
        raise PydanticCustomError("stop_type", "must be a string or a list of strings")
    return value


Stop = Annotated[
    Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]], Field(max_length=MAX_STOPS)
    ]
    | None,
    BeforeValidator(_stop_list),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
                {
                    "type": "array",
                    "maxItems": MAX_STOPS,
                    "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
                },
                {"type": "null"},
            ]
        }
    ),
]
TokenId = Annotated[int, Field(ge=0, lt=1 << 24)]
TokenIdText = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,7})$")]
"""An id as a JSON key; one spelling each, so that no id is named twice."""
Penalty = Annotated[float, Field(ge=-2, le=2)] | None
Bias = Annotated[float, Field(ge=-100, le=100)]
LogitBias = Annotated[dict[TokenIdText, Bias], Field(max_length=MAX_BIASES)] | None
TokenLimit = Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None


class SamplingFields(Schema):
    """What every generating endpoint takes."""

    max_tokens: TokenLimit = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 24)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    logit_bias: LogitBias = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stop = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_IDS)] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    return_token_ids: bool | None = None
    timings: bool | None = None
    timings_per_token: bool | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    cache_salt: Annotated[str, Field(max_length=MAX_SALT_CHARS)] | None = None
    user: Annotated[str, Field(max_length=1024)] | None = None


@dataclass(frozen=True, slots=True)
class Drawing:
    """How this request's replies are drawn, and what the client is told about it."""

    params: SamplingParams
    num_choices: int

    @property
    def headers(self) -> dict[str, str]:
        """The seed, chosen or given: sent again, it makes the same draws."""
        return {SEED_HEADER: str(self.params.seed)}


def limit_tokens(asked: int | None, defaults: GenerationDefaults, cap: int | None) -> int | None:
    """New tokens a reply may have before the model's room is considered; None is all there is.

    Args:
        asked: by the request; never capped here.
        cap: the operator's, for requests that do not ask.
    """
    if asked is not None:
        return asked
    limits = [limit for limit in (defaults.max_tokens, cap) if limit is not None]
    return min(limits) if limits else None


def check_scores(param: str, num_tokens: int, num_top: int | None) -> None:
    """Log probabilities of prompts are many numbers: up to MAX_SCORES in one reply.

    Args:
        param: the field that asks for them.
        num_tokens: of all prompts, as often as they are reported.
        num_top: alternatives beside each; None for none at all.

    Raises:
        ApiError: more.
    """
    if num_top is not None and (count := num_tokens * (num_top + 1)) > MAX_SCORES:
        raise invalid(
            f"{param} asks for {count} log probabilities of {num_tokens} prompt tokens, "
            f"at most {MAX_SCORES} in one reply; ask for fewer at once",
            param,
        )


def to_drawing(
    fields: SamplingFields,
    model: TextModel,
    max_tokens: int,
    *,
    template_stops: bool = True,
    logprobs: int | None = None,
) -> Drawing:
    """The request's fields over the checkpoint's defaults.

    Args:
        max_tokens: what `TextModel.check_room` allowed.
        template_stops: the template's stop strings end the reply too.
        logprobs: as in SamplingParams.

    Raises:
        ApiError: top_k or a token id beyond the vocabulary, or min_tokens beyond max_tokens.
    """
    defaults, end = model.defaults, model.tokenizer.end_of_text
    ends = defaults.stop_token_ids | (frozenset() if end is None else {end})
    vocab_size = model.tokenizer.vocab_size
    top_k = max(0, _sent(fields.top_k, min(defaults.top_k, vocab_size)))
    if top_k > vocab_size:
        raise invalid(f"top_k must be at most {vocab_size}, the vocabulary, got {top_k}", "top_k")
    bias = {int(token): float(amount) for token, amount in (fields.logit_bias or {}).items()}
    stop_ids = frozenset(fields.stop_token_ids or ())
    _check_ids(bias, "logit_bias", model)
    _check_ids(stop_ids, "stop_token_ids", model)
    min_tokens = _sent(fields.min_tokens, 0)
    if min_tokens > max_tokens:
        message = f"min_tokens must be at most {max_tokens}, the tokens this reply may have, got {min_tokens}"
        raise invalid(message, "min_tokens")
    if min_tokens and len(stop_ids | ends) >= vocab_size:
        message = "min_tokens needs a token that does not end the reply; stop_token_ids are all there are"
        raise invalid(message, "min_tokens")
    until_asked = bool(fields.ignore_eos)  # neither the model's end nor the template's stops end the reply
    own_stops = defaults.stop if template_stops and not until_asked else ()
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=_sent(fields.temperature, defaults.temperature),
        top_k=top_k,
        top_p=_sent(fields.top_p, defaults.top_p),
        min_p=_sent(fields.min_p, defaults.min_p),
        repetition_penalty=_sent(fields.repetition_penalty, defaults.repetition_penalty),
        frequency_penalty=_sent(fields.frequency_penalty, 0.0),
        presence_penalty=_sent(fields.presence_penalty, 0.0),
        logit_bias=tuple(bias.items()),
        seed=secrets.randbits(MADE_SEED_BITS) if fields.seed is None else fields.seed,
        stop=tuple(dict.fromkeys((*own_stops, *(fields.stop or ())))),
        stop_token_ids=stop_ids if until_asked else stop_ids | ends,
        min_tokens=min_tokens,
        logprobs=logprobs,
        prompt_logprobs=fields.prompt_logprobs,
    )
    return Drawing(params, _sent(fields.n, 1))


def _sent(value: T | None, default: T) -> T:
    """What the request says, 0 included, else the default."""
    return default if value is None else value


def _check_ids(ids: Iterable[int], param: str, model: TextModel) -> None:
    limit = model.tokenizer.vocab_size
    for token in ids:
        if token >= limit:
            raise invalid(f"{param} must name token ids below {limit}, the vocabulary, got {token}", param)
