"""Damaged and hostile checkpoints of every format, through real commands: one line, status 1, nothing run.

Each is written whole first, and the whole one starts. A canary is a path that the hostile ones would make.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file

import server.__main__ as serve
from llm.checkpoint import inspect
from llm.model import Decoder
from server.lifecycle import Lifecycle
from server.logs import log_config
from tests.checkpoint_writers import random_weights, write_gguf
from tests.llm.test_checkpoint_hf import byte_tokenizer
from tests.test_formats import (
    GPT_CONFIG,
    LLAMA_CONFIG,
    bare,
    gguf,
    hf_llama,
    hf_llama_bin,
    hf_llama_sharded,
    litgpt,
    model_of,
    nanogpt,
)
from tests.torch_writers import write_meta

SECONDS = 60
"""Nothing here takes one; a command that hangs is stopped and fails its test."""
CHARACTERS = "".join(map(chr, range(32, 32 + GPT_CONFIG.vocab_size)))

Write = Callable[[Path, Decoder], Path]
Spoil = Callable[[Path, Path], object]
"""(what was written, the canary) → damage."""


def hf_tokenizer_json(folder: Path, model: Decoder) -> Path:
    spec = byte_tokenizer()
    del spec["added_tokens"][2:]  # as many ids as rows
    hf_llama(folder, model)
    (folder / "tokenizer.tiktoken").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return folder


def nanogpt_characters(folder: Path, model: Decoder) -> Path:
    path = nanogpt(folder, model)
    (folder / "tokenizer.tiktoken").unlink()
    write_meta(folder / "meta.pkl", CHARACTERS)
    return path


class Payload:
    """Unpickled freely, this would make a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.canary),)


def halve(name: str = "") -> Spoil:
    """Truncate the file, or that file of the folder."""

    def spoil(path: Path, canary: Path) -> None:
        file = path / name if name else path
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return spoil


def write(name: str, text: str) -> Spoil:
    return lambda path, canary: (path / name).write_text(text)


def template(source: str) -> Spoil:
    return lambda path, canary: (path / "chat_template.jinja").write_text(
        source.replace("CANARY", str(canary))
    )


def gguf_with(**fields: Any) -> Spoil:
    """The same file with other metadata; `__` stands for a dot."""
    dotted = {name.replace("__", "."): value for name, value in fields.items()}

    def spoil(path: Path, canary: Path) -> None:
        write_gguf(path, LLAMA_CONFIG, random_weights(LLAMA_CONFIG), fields=dotted)

    return spoil


def gguf_wrong_shape(path: Path, canary: Path) -> None:
    weights = random_weights(LLAMA_CONFIG)
    weights["blocks.0.ffn.up.weight"] = weights["blocks.0.ffn.up.weight"][:-32]
    write_gguf(path, LLAMA_CONFIG, weights)


def gguf_unknown(path: Path, canary: Path) -> None:
    write_gguf(path, LLAMA_CONFIG, random_weights(LLAMA_CONFIG), architecture="mine")


def config(**changes: Any) -> Spoil:
    def spoil(path: Path, canary: Path) -> None:
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


def auto_map(path: Path, canary: Path) -> None:
    """Code that the folder asks to be run."""
    config(auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})(path, canary)
    code = f"import os\nos.mkdir({str(canary)!r})\n"
    for name in ("modeling_mine.py", "__init__.py", "conftest.py"):
        (path / name).write_text(code)


def auto_map_alone(path: Path, canary: Path) -> None:
    """For an architecture we do not know."""
    auto_map(path, canary)
    config(model_type="mine", architectures=["Mine"])(path, canary)


def hf_wrong_shape(path: Path, canary: Path) -> None:
    state = load_file(path / "model.safetensors")
    state["model.norm.weight"] = torch.ones(63)
    save_file(state, path / "model.safetensors")


def edit_torch(name: str, change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Save the torch file again, its state dict (or what holds it) changed."""

    def spoil(path: Path, canary: Path) -> None:
        file = path / name if name else path
        saved = torch.load(file, weights_only=True)
        change(saved)
        torch.save(saved, file)

    return spoil


def program(name: str = "", *, raw: bool = False) -> Spoil:
    """A pickle that would run code, as torch.save writes one or bare."""

    def spoil(path: Path, canary: Path) -> None:
        file = path / name if name else path
        if raw:
            file.write_bytes(pickle.dumps({"model": Payload(canary)}))
        else:
            torch.save({"model": Payload(canary)}, file)

    return spoil


def meta_with_a_global(path: Path, canary: Path) -> None:
    write_meta(path.parent / "meta.pkl", CHARACTERS, itos=Payload(canary))


def remove(name: str) -> Spoil:
    return lambda path, canary: (path / name).unlink()


class Case(NamedTuple):
    """A checkpoint, what is done to it, and what the error line must say."""

    write: Write
    spoil: Spoil
    says: str


ESCAPE = "{{ messages[0].content }}{{ ''.__class__.__mro__[1].__subclasses__()[0]('CANARY') }}"
CASES = {
    "hf: truncated weights": Case(hf_llama, halve("model.safetensors"), "model.safetensors"),
    "hf: truncated config": Case(hf_llama, halve("config.json"), "config.json"),
    "hf: wrong shape": Case(hf_llama, hf_wrong_shape, "model.norm.weight"),
    "hf: wrong width": Case(hf_llama, config(hidden_size=128), "config.json"),
    "hf: absurd width": Case(hf_llama, config(hidden_size=1 << 40), "hidden_size"),
    "hf: missing weights": Case(hf_llama, remove("model.safetensors"), "no weights"),
    "hf: missing shard": Case(hf_llama_sharded, remove("model-00002-of-00002.safetensors"), "00002-of-00002"),
    "hf: unknown architecture": Case(hf_llama, config(model_type="mine"), "mine"),
    "hf: auto_map": Case(hf_llama, auto_map_alone, "mine"),
    "hf: a .bin that is a program": Case(hf_llama_bin, program("pytorch_model.bin"), "pickle"),
    "hf: a bare pickle as .bin": Case(
        hf_llama_bin, program("pytorch_model.bin", raw=True), "pytorch_model.bin"
    ),
    "hf: truncated tokenizer.json": Case(hf_tokenizer_json, halve("tokenizer.json"), "tokenizer.json"),
    "hf: tokenizer.json of another kind": Case(
        hf_tokenizer_json, write("tokenizer.json", "[1]"), "tokenizer.json"
    ),
    "hf: no tokenizer": Case(hf_tokenizer_json, remove("tokenizer.json"), "tokenizer"),
    "hf: damaged ranks": Case(hf_llama, write("tokenizer.tiktoken", "%%% 0\n"), "tokenizer.tiktoken"),
    "template: no template": Case(hf_llama, template("{% for m in messages %}"), "chat template: line 1"),
    "template: includes itself": Case(
        hf_llama, template("{% include 'chat_template.jinja' %}{{ messages[0].content }}"), "chat template"
    ),
    "template: extends itself": Case(
        hf_llama, template("{% extends 'chat_template.jinja' %}"), "chat template"
    ),
    "template: a macro that calls itself": Case(
        hf_llama, template("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}"), "deep"
    ),
    "template: loops for ever": Case(
        hf_llama,
        template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        "steps",
    ),
    "template: writes for ever": Case(
        hf_llama,
        template(
            "{% set n = namespace(s='xxxx') %}{% for a in range(999) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
        ),
        "steps",
    ),
    "template: computes for ever": Case(
        hf_llama, template("{{ messages[0].content }}{{ 9 ** 9 ** 9 ** 9 }}"), "bits"
    ),
    "template: reaches for Python": Case(hf_llama, template(ESCAPE), "__class__"),
    "template: reaches for its own insides": Case(
        hf_llama,
        template("{{ raise_exception.__globals__['os'].mkdir('CANARY') }}{{ messages[0].content }}"),
        "__globals__",
    ),
    "template: leaves the user out": Case(hf_llama, template("hello"), "chat template"),
    "gguf: truncated": Case(gguf, halve(), "tiny.gguf"),
    "gguf: wrong shape": Case(gguf, gguf_wrong_shape, "ffn_up"),
    "gguf: unknown architecture": Case(gguf, gguf_unknown, "mine"),
    "gguf: wrong head count": Case(gguf, gguf_with(llama__attention__head_count=3), "head"),
    "gguf: endless template": Case(
        gguf,
        gguf_with(
            tokenizer__chat_template=(
                "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
            )
        ),
        "steps",
    ),
    "gguf: half a vocabulary": Case(gguf, gguf_with(tokenizer__ggml__tokens=["a", "b"]), "tiny.gguf"),
    "nanogpt: truncated": Case(nanogpt, halve(), "truncated or damaged"),
    "nanogpt: wrong arguments": Case(
        nanogpt, edit_torch("", lambda saved: saved["model_args"].update(n_layer=7)), "n_layer"
    ),
    "nanogpt: wrong shape": Case(
        nanogpt,
        edit_torch("", lambda s: s["model"].update({"_orig_mod.transformer.ln_f.weight": torch.ones(63)})),
        "ln_f",
    ),
    "nanogpt: a program": Case(nanogpt, program(), "pickle"),
    "nanogpt: a bare program": Case(nanogpt, program(raw=True), "ckpt.pt"),
    "nanogpt: meta.pkl with a global": Case(nanogpt_characters, meta_with_a_global, "meta.pkl"),
    "nanogpt: truncated meta.pkl": Case(
        nanogpt_characters, lambda p, c: halve("meta.pkl")(p.parent, c), "meta.pkl"
    ),
    "litgpt: truncated": Case(litgpt, halve("lit_model.pth"), "lit_model.pth"),
    "litgpt: missing settings": Case(litgpt, remove("model_config.yaml"), "model_config.yaml"),
    "litgpt: settings that build an object": Case(
        litgpt, write("model_config.yaml", "name: !!python/object/apply:os.mkdir [x]\n"), "model_config.yaml"
    ),
    "litgpt: settings that contain themselves": Case(
        litgpt, write("model_config.yaml", "&a name: *a\nn_layer: &b [*b]\n"), "model_config.yaml"
    ),
    "litgpt: wrong shape": Case(
        litgpt,
        edit_torch("lit_model.pth", lambda s: s.update({"transformer.ln_f.weight": torch.ones(63)})),
        "norm.weight",
    ),
    "litgpt: a program": Case(litgpt, program("lit_model.pth"), "pickle"),
    "bare: truncated": Case(bare, halve(), "truncated or damaged"),
    "bare: a layer is missing": Case(
        bare,
        edit_torch("", lambda s: [s.pop(n) for n in list(s) if n.startswith("blocks.0.ln1")]),
        "blocks.0",
    ),
    "bare: wrong shape": Case(
        bare, edit_torch("", lambda s: s.update({"pos_emb.weight": torch.ones(64, 63)})), "pos"
    ),
    "bare: unknown architecture": Case(
        bare, edit_torch("", lambda s: (s.clear(), s.update(conv=torch.ones(3, 3)))), "conv"
    ),
    "bare: not a number": Case(
        bare, edit_torch("", lambda s: s["pos_emb.weight"].fill_(float("nan"))), "positions"
    ),
    "bare: a program": Case(bare, program(), "pickle"),
    "bare: a program of the oldest format": Case(bare, program(raw=True), "model_sft.pt"),
    "bare: empty": Case(bare, lambda path, canary: path.write_bytes(b""), "empty"),
    "bare: a text": Case(bare, lambda path, canary: path.write_text("hello" * 9), "not a format we read"),
}
WRITERS = (
    hf_llama,
    hf_llama_sharded,
    hf_llama_bin,
    hf_tokenizer_json,
    gguf,
    litgpt,
    nanogpt,
    nanogpt_characters,
    bare,
)
AFTER_OPENING = {"bare: not a number"}
"""Numbers are looked at when weights are loaded; `inspect` does not load them."""


@pytest.fixture(autouse=True)
def _stopped_when_it_hangs() -> Iterator[None]:
    def stop(*_: object) -> NoReturn:
        raise AssertionError(f"still at work after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _ends_before_serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`serve` goes as far as a model's first token; it does not wait for clients. The log is put back."""
    until_over = Lifecycle.until_over

    async def until_ready(life: Lifecycle, *rest: Any) -> bool:
        if await life.until_ready():
            life.ask_to_stop()
        return await until_over(life, *rest)

    monkeypatch.setattr(Lifecycle, "until_over", until_ready)
    loggers = [logging.getLogger(name) for name in log_config("info")["loggers"]]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def written(write: Write, folder: Path) -> Path:
    folder.mkdir()
    return write(
        folder, model_of(GPT_CONFIG if write in (bare, nanogpt, nanogpt_characters) else LLAMA_CONFIG)
    )


def statuses(path: Path) -> tuple[int, int]:
    """Of both commands."""
    heads = ["--n-head", "4"] if path.suffix == ".pt" else []
    served = serve.main(
        ["--checkpoint", str(path), "--port", "0", "--device", "cpu", "--threads", "1", *heads]
    )
    return served, inspect.main([str(path), *heads])


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_the_whole_one_starts(tmp_path: Path, write: Write) -> None:
    assert statuses(written(write, tmp_path / "checkpoint")) == (0, 0)


def test_a_folder_with_code_starts_without_it(tmp_path: Path) -> None:
    path, canary = written(hf_llama, tmp_path / "checkpoint"), tmp_path / "canary"
    auto_map(path, canary)
    assert statuses(path) == (0, 0)
    assert not canary.exists()


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_one_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, canary = CASES[name], tmp_path / "canary"
    path = written(case.write, tmp_path / "checkpoint")
    case.spoil(path, canary)
    capsys.readouterr()
    inspects = int(name not in AFTER_OPENING)
    assert statuses(path) == (1, inspects)
    err = capsys.readouterr().err.splitlines()
    lines = [line for line in err if not line.startswith(("INFO: ", "WARNING: "))]
    assert len(lines) == 1 + inspects, lines
    for line, start in zip(lines, ("causerie serve: error: ", "error: ")[: 1 + inspects], strict=True):
        assert line.startswith(start) and str(tmp_path) in line and case.says in line, line
        assert len(line) < 600 and line.isprintable()
    assert not canary.exists(), "code of the checkpoint has run"
