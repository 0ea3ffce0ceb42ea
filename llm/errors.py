"""Everything that can go wrong for a reason outside our code.

    CauserieError
    ├── CheckpointError          the file or folder cannot be served: format, names, shapes, hostile content
    │   └── PromptMismatch       the serving template does not render what the model was trained on
    ├── PullError                a checkpoint could not be fetched: network, checksum, disk; its name first
    ├── DataError                a training or test file cannot be used; path and line first
    ├── DeviceError              the device asked for is not there
    ├── OptionError              an operator's option is out of the bounds of this model or machine
    ├── RequestError             one request asks for something out of bounds; names the field
    │   └── ContextLengthExceeded
    └── EngineError              the request was fine, the engine could not finish it
        ├── EngineStopped        the engine takes no more work
        ├── QueueTimeout         the request waited too long for its turn
        ├── DeadlinePassed       the request took longer than any may
        ├── ReaderTooSlow        its tokens were not taken as fast as they were made
        └── StepFailed           the forward pass of this sequence's batch raised
            ├── OutOfMemory      for want of memory; the next batch may fit
            └── DeviceLost       and the device will not compute again

Messages are one line and name the field, the value and the limit. Our own bugs are `assert`s, not these.
"""

from __future__ import annotations


class CauserieError(Exception):
    """Root of the tree above; its text is one line a user can act on."""


class CheckpointError(CauserieError):
    """A checkpoint was refused. The message starts with its path."""


class PromptMismatch(CheckpointError):
    """A sample training conversation renders to other token ids than it was trained with."""


class PullError(CauserieError):
    """A checkpoint could not be fetched. The message starts with its name or its file's."""


class DataError(CauserieError):
    """A training or test file cannot be used. The message starts with path and line number."""


class DeviceError(CauserieError):
    """The device named by the operator does not exist on this machine."""


class OptionError(CauserieError):
    """An option of the operator does not fit the model or the machine. The message names it."""


class RequestError(CauserieError):
    """One request cannot be served as asked. `param` is the field's path, `code` OpenAI's error code."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthExceeded(RequestError):
    """The prompt leaves no room for a single new token within `limit` positions. `param` is where it came
    from.
    """

    def __init__(self, num_prompt_tokens: int, limit: int, *, param: str = "messages") -> None:
        way_out = ", or send truncation: drop_oldest" if param == "messages" else ""
        # Frameworks know this error by these words: "prompt is too long", "this model's maximum ...".
        super().__init__(
            f"the prompt is too long: it has {num_prompt_tokens} tokens, and this model's maximum context "
            f"length is {limit} tokens, prompt and reply together. Shorten the {param}{way_out}.",
            param=param,
            code="context_length_exceeded",
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.limit = limit


class EngineError(CauserieError):
    """The engine could not finish a sequence."""


class EngineStopped(EngineError):
    """The engine is shutting down or its thread is gone."""


class QueueTimeout(EngineError):
    """A request waited longer for its turn than the operator allows."""


class DeadlinePassed(EngineError):
    """A request took longer, all in all, than the operator allows."""


class ReaderTooSlow(EngineError):
    """A request's tokens piled up because nobody took them."""


class StepFailed(EngineError):
    """A forward pass raised; every sequence of that batch ends with this, and the next batch runs."""


class OutOfMemory(StepFailed):
    """The device had too little memory for this batch."""


class DeviceLost(StepFailed):
    """The device is gone or its state is: every later batch would fail as well, so the engine ends."""
