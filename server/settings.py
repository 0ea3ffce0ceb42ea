"""What the operator chose: flags, then environment, then a YAML file, then the defaults below.

Every field is a flag (`--max-model-len`), a variable (CAUSERIE_MAX_MODEL_LEN) and a key of the file given
with --config (`max-model-len` or `max_model_len`). An option is added in one place: as a field. Nothing else
reads these three. Refuses to know what a value means to a model: whoever uses one checks it.

    $ CAUSERIE_API_KEY=secret python -m server --port 8001 --max-num-seqs 4
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

import yaml  # type: ignore[import-untyped]
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from starlette.requests import Request

PROG = "causerie serve"
ENV_PREFIX = "CAUSERIE_"

REPEATABLE = {
    "adapter": "[MODEL:]NAME=PATH",
    "api_key": "KEY",
    "checkpoint": "[NAME=]PATH",
    "cors_origin": "ORIGIN",
}
"""Options that may be given several times, and what to write after them."""

Count = Annotated[int, Field(ge=1, le=1 << 24)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class SettingsError(Exception):
    """An option that cannot be used, in one line."""


class Settings(BaseSettings):
    """One flat set of options. Names are vLLM's where it has one."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    config: Path | None = Field(None, description="YAML file with any of these options")
    host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 is every interface"
    )
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    uvicorn_log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = Field(
        "info", description="what the HTTP server logs"
    )
    log_format: Literal["text", "json"] = Field("text", description="lines to read, or one object per line")
    log_requests: bool = Field(False, description="log a line for every request at its end")
    log_prompts: bool = Field(False, description="with --log-requests, prompts and replies too")

    checkpoint: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="file or folder to serve, or NAME=PATH; repeatable; the log says which is default",
    )
    adapter: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="LoRA adapter in PEFT's layout, on the first model or the one named; repeatable; a "
        "request asks for MODEL:NAME",
    )
    adapter_dir: Path | None = Field(
        None,
        description="folder below which POST /v1/load_lora_adapter finds adapters; without it none can be "
        "loaded while the server runs",
    )
    max_loras: int = Field(
        8,
        ge=1,
        le=1024,
        description="with --adapter-dir, adapters on a model at a time; memory is kept for them",
    )
    max_lora_rank: int = Field(
        64, ge=1, le=4096, description="with --adapter-dir, largest rank of an adapter; memory is kept for it"
    )
    n_head: Count | None = Field(
        None, description="attention heads of a bare state dict, whose shapes do not tell"
    )
    served_model_name: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="model id to answer to; default is the checkpoint's name",
    )
    device: str = Field("auto", min_length=1, description="auto, cpu, mps, cuda, or several: cuda:0,cuda:1")
    dtype: str = Field("auto", min_length=1, description="auto, float32, float16 or bfloat16")
    runner: Literal["auto", "native", "eager"] = Field(
        "auto",
        description="what computes on a CPU: the compiled kernel or torch; auto: the kernel where it runs",
    )
    quantization: Literal["auto", "none", "int8", "int4"] = Field(
        "auto",
        description="weights of the kernel; auto: as the checkpoint groups them, else int8; none: float32",
    )
    kv_cache_dtype: Literal["auto", "float16", "float32"] = Field(
        "auto",
        description="keys and values of the kernel; auto: float16, but float32 with --quantization none",
    )
    threads: Count | None = Field(
        None,
        description="CPU threads of the model; default is every usable core, one less for the eager runner",
    )
    show_prompt: bool = Field(False, description="print a rendered prompt and its token ids at start")

    max_model_len: Count | None = Field(
        None, description="longest prompt + reply in tokens; default is the model's"
    )
    max_num_seqs: Count = Field(16, description="replies generated together")
    max_num_batched_tokens: Count = Field(
        512, description="tokens computed in one step; longer prompts go in chunks"
    )
    max_step_ms: int = Field(
        100, ge=0, le=1 << 20, description="a prompt's chunk beside open replies takes so long; 0: no bound"
    )
    num_gpu_blocks_override: Count | None = Field(
        None, description="KV cache blocks, on any device; default fits all"
    )
    enable_prefix_caching: bool = Field(
        True, description="reuse what was computed of a prompt's beginning, within a key and cache_salt"
    )
    num_speculative_tokens: int | None = Field(
        None,
        ge=0,
        le=64,
        description="guesses computed beside a reply's next token, from what it repeats; changes no token; "
        "default is 8 with the kernel, else 0",
    )
    default_max_tokens: Count | None = Field(
        None, description="cap on new tokens of a request that sets no limit"
    )

    max_num_queued_seqs: int | None = Field(
        None, ge=0, le=1 << 20, description="replies that may wait; default is 4 for each that may run"
    )
    queue_timeout: Seconds = Field(30.0, description="seconds a request may wait before it is refused")
    request_timeout: Seconds = Field(600.0, description="seconds a request may take in all")
    stall_timeout: Seconds = Field(
        30.0, description="seconds without a step, while there is work, after which /live says stalled"
    )

    api_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="key clients must send; repeatable; as a flag it shows in the process list",
    )
    api_key_file: Path | None = Field(None, description="YAML file of named keys, with limits of their own")
    cors_origin: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="web origin whose pages may ask, such as https://chat.example; repeatable"
    )
    page: bool = Field(True, description="serve the chat page at /; it needs no key, what it asks for does")
    strict: bool = Field(
        False, description="refuse requests with fields this server ignores, instead of reporting them"
    )
    max_body_bytes: int = Field(2 << 20, ge=1024, le=1 << 30, description="largest request body")
    keep_alive_interval: Seconds = Field(15.0, description="seconds between comments on a silent stream")
    send_timeout: Seconds = Field(30.0, description="seconds a client may stall before its stream is cut")
    header_timeout: Seconds = Field(10.0, description="seconds a request's headers may take to arrive")
    body_timeout: Seconds = Field(30.0, description="seconds a request's body may take to arrive")
    max_connections: Count = Field(1024, description="connections open at a time")
    drain_timeout: float = Field(
        25.0, ge=0, le=3600, description="seconds open replies may take after SIGTERM"
    )

    @field_validator(*REPEATABLE, mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """CAUSERIE_API_KEY=a,b and `api_key: a` in YAML are as good as a list."""
        return value.split(",") if isinstance(value, str) else value

    @field_validator("checkpoint")
    @classmethod
    def _check_checkpoints(cls, named: tuple[str, ...]) -> tuple[str, ...]:
        if not all(named):
            raise ValueError("a path must not be empty")
        return named

    @field_validator("api_key")
    @classmethod
    def _check_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        """An empty key would leave the server open while looking closed."""
        for key in keys:
            text = key.get_secret_value()
            if not text or not text.isascii() or not text.isprintable() or " " in text:
                raise ValueError("a key must be printable ASCII without spaces, and not empty")
        return keys

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = init_settings().get("config") or env_settings().get("config")
        if path is None:
            return init_settings, env_settings
        return (
            init_settings,
            env_settings,
            InitSettingsSource(settings_cls, init_kwargs=_read_file(Path(path))),
        )


def load_settings(argv: Sequence[str]) -> Settings:
    """Settings of these arguments, this process's environment and the file they name.

    Raises:
        SettingsError: one line. `--help` prints and leaves through SystemExit.
    """
    flags = vars(_parser().parse_args(list(argv)))
    try:
        return Settings(**flags)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        reason = (
            "no such option"
            if first["type"] == "extra_forbidden"
            else first["msg"].removeprefix("Value error, ")
        )
        given = (
            f", got {first['input']!r:.80}" if isinstance(first["input"], str) and name != "api_key" else ""
        )
        raise SettingsError(f"{_flag(name)} ({ENV_PREFIX}{name.upper()}): {reason}{given}") from None


def settings_of(request: Request) -> Settings:
    """The settings of the app that got this request."""
    settings = request.app.state.settings
    assert isinstance(settings, Settings)
    return settings


def _read_file(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # their words may quote a key
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        reason = "not YAML; text that begins with one of * & ! % @ ` needs quotes"
        raise SettingsError(f"--config {path}{line}: {reason}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise SettingsError(f"--config {path}: expected one option per line, such as `port: 8000`")
    options = {key.replace("-", "_"): value for key, value in loaded.items()}
    unknown = sorted(set(options) - set(Settings.model_fields) | (set(options) & {"config"}))
    if unknown:
        raise SettingsError(f"--config {path}: no such option: {', '.join(unknown)}")
    return options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):  # what follows a misspelt --api-key is a key
            flags = [word.partition("=")[0] for word in message.split(": ", 1)[1].split() if word[:1] == "-"]
            message = f"no such option: {', '.join(flags) or 'words without a flag before them'}"
        raise SettingsError(message)


def _parser() -> argparse.ArgumentParser:
    """One flag per field; what is not given stays out, so that the other sources can fill it."""
    parser = _Parser(
        prog=PROG,
        description="Serve a checkpoint over OpenAI's API.",
        epilog=f"Each option is also a variable ({ENV_PREFIX}MAX_MODEL_LEN) and a key of --config's file.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        text = (field.description or "").replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction, help=text)
        elif name in REPEATABLE:
            parser.add_argument(_flag(name), action="append", metavar=REPEATABLE[name], help=text)
        else:
            shown = "" if default is None else f" (default {default})"
            parser.add_argument(_flag(name), metavar=_metavar(field.annotation), help=text + shown)
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(annotation: Any) -> str:
    """PATH, N, SECONDS, TEXT or {a,b}: what to write after a flag."""
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    if get_origin(annotation) in (Union, types.UnionType):
        return _metavar(next(a for a in get_args(annotation) if a is not type(None)))
    if get_origin(annotation) is Annotated:
        return _metavar(get_args(annotation)[0])
    return {int: "N", float: "SECONDS", Path: "PATH"}.get(annotation, "TEXT")
