"""What the routes answer, as the OpenAPI document says it. For readers, generators of clients, and fuzzers.

Replies are written by hand where speed counts, so these classes build nothing; tests hold every kind of reply
against them. A field that is left out when it was not asked for is `| Absent`. Refuses to know requests.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import SkipJsonSchema

from server.api.fields import component

Absent = SkipJsonSchema[None]

FinishReason = Literal["stop", "length", "tool_calls"]


class Shape(BaseModel):
    """An object with these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class Usage(Shape):
    """Tokens; the prompt counts once however many choices it has."""

    class Details(Shape):
        """Of the prompt's tokens."""

        cached_tokens: int

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Details


class Timings(Shape):
    """Milliseconds, and tokens a second after the first of each choice."""

    class Token(Shape):
        """Since the choice's last token, and how many sequences that step computed."""

        choice: int | Absent = None
        ms: float
        batch: int

    queue_ms: float
    prefill_ms: float
    ttft_ms: float
    decode_tok_s: float | None
    cached_tokens: int
    per_token: list[Token] | Absent = None


class PromptLogprob(Shape):
    """Of one token that might have stood in the prompt."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class TopLogprob(Shape):
    """A token, as text and as bytes."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """One of the reply's, and what else might have stood there."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Shape):
    """For each token of the text."""

    content: list[TokenLogprob]
    refusal: None


class ToolCall(Shape):
    """A function that is to be called."""

    class Function(Shape):
        """Arguments are the JSON text of an object."""

        name: str
        arguments: str

    id: str
    type: Literal["function"]
    function: Function


class Head(Shape):
    """What a reply and all of its chunks have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(Head):
    """A whole reply."""

    class Choice(Shape):
        """One of n."""

        class Message(Shape):
            """`content` is null when there are only calls."""

            role: Literal["assistant"]
            content: str | None
            refusal: None
            tool_calls: list[ToolCall] | Absent = None

        index: int
        message: Message
        logprobs: ChatLogprobs | None
        finish_reason: FinishReason
        token_ids: list[int] | Absent = None

    object: Literal["chat.completion"]
    choices: list[Choice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | Absent = None
    prompt_token_ids: list[int] | Absent = None
    timings: Timings | Absent = None


class ChatChunk(Head):
    """What one frame of a stream holds."""

    class Choice(Shape):
        """What a choice gained."""

        class Delta(Shape):
            """`role` first and once; nothing with the finish."""

            class CallPart(Shape):
                """`id`, `type` and the name with a call's first part only."""

                class Function(Shape):
                    """Arguments go on from the last part's."""

                    name: str | Absent = None
                    arguments: str

                index: int
                id: str | Absent = None
                type: Literal["function"] | Absent = None
                function: Function

            role: Literal["assistant"] | Absent = None
            content: str | Absent = None
            tool_calls: list[CallPart] | Absent = None

        index: int
        delta: Delta
        logprobs: ChatLogprobs | None
        finish_reason: FinishReason | None
        token_ids: list[int] | Absent = None

    object: Literal["chat.completion.chunk"]
    choices: list[Choice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | Absent = None
    timings: Timings | Absent = None


class CompletionLogprobs(Shape):
    """Lists of one length, an item for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Shape):
    """One of n for each prompt; `finish_reason` is null in all chunks of a stream but the last."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    token_ids: list[int] | Absent = None
    prompt_token_ids: list[int] | Absent = None
    prompt_logprobs: PromptLogprobs | Absent = None


class Completion(Head):
    """A whole reply, or a chunk of a stream."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage | None = None
    timings: Timings | Absent = None


class Embeddings(Shape):
    """A vector for each input: numbers, or base64 of little-endian float32."""

    class Embedding(Shape):
        """Of the input with that index."""

        object: Literal["embedding"]
        index: int
        embedding: list[float] | str

    class Tokens(Shape):
        """Of all inputs."""

        prompt_tokens: int
        total_tokens: int

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Tokens


class Scores(Shape):
    """How probable each input is to the model."""

    class Score(Shape):
        """One input's."""

        class Token(Shape):
            """One of its tokens; the first follows nothing."""

            id: int
            token: str
            bytes: list[int]
            logprob: float | None
            counts: bool

        object: Literal["score"]
        index: int
        nll: float
        num_tokens: int
        mean: float
        perplexity: float
        tokens: list[Token] | Absent = None

    object: Literal["list"]
    data: list[Score]
    model: str
    system_fingerprint: str
    usage: Usage


class ModelCard(Shape):
    """A model, its context and its sampling policy."""

    class Sampling(Shape):
        """What holds when a request does not say."""

        temperature: float
        top_p: float
        top_k: int
        min_p: float
        repetition_penalty: float
        max_tokens: int | None
        stop: list[str]

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    checkpoint: str
    default_sampling: Sampling


class ModelList(Shape):
    """Every model, the default one first."""

    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(Shape):
    """Ids, and when asked for their texts."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Shape):
    """The text of ids."""

    prompt: str


class Rendered(Shape):
    """What the model would read."""

    prompt: str
    token_ids: list[int]


Phase = Literal["loading", "warming", "ready", "draining", "dead"]


class State(Shape):
    """One word for a probe."""

    status: Phase | Literal["ok", "stalled"]


class Health(Shape):
    """Whether every engine makes progress."""

    class Engine(Shape):
        """One device's, with its counts since the start."""

        model: str
        device: str
        status: Literal["ok", "dead", "stalled"]
        num_running: int
        num_waiting: int
        num_steps: int
        num_tokens: int
        num_prompt_tokens: int
        num_preemptions: int
        num_free_blocks: int
        num_blocks: int
        num_cached_blocks: int
        num_cache_queries: int
        num_cache_hits: int
        num_drafted: int
        num_accepted: int
        cpu_seconds: float
        runner_cpu_seconds: float

    status: Literal["ok", "loading", "dead", "stalled"]
    phase: Phase
    pid: int
    loop_cpu_seconds: float
    engines: list[Engine]


class Version(Shape):
    """The server's."""

    version: str


Responses = dict[int | str, dict[str, Any]]

_FRAMES = (
    "With stream: true. Frames `data: JSON`, each followed by an empty line. JSON is of the form of x-chunk, "
    "or, last but one, an error object; the last is [DONE]. Lines that begin with a colon say nothing."
)


def ok(shape: type[Shape], *, status: int = 200) -> Responses:
    """`responses=` of a route that answers with this."""
    content = {"application/json": {"schema": component(shape)}}
    return {status: {"description": shape.__doc__, "content": content}}


def ok_or_stream(shape: type[Shape], chunk: type[Shape]) -> Responses:
    """The same of a route that streams when asked to."""
    responses = ok(shape)
    frames = {"type": "string", "description": _FRAMES, "x-chunk": component(chunk)}
    responses[200]["content"]["text/event-stream"] = {"schema": frames}
    return responses
