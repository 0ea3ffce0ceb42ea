"""From settings to a served model, and the lines an operator reads."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path

import pytest
import torch

from llm.checkpoint import save_folder
from llm.config import COURSE_DEFAULTS
from llm.errors import CauserieError
from llm.hardware import usable_cores
from llm.runner.native.runner import NativeRunner
from llm.tokenizer import ByteTokenizer, load_tiktoken
from server.app import create_app
from server.settings import load_settings
from server.startup import curl_line, is_loopback, load, open_door_lines, prompt_lines, server_url
from tests.fakes import ScriptedModel, tiny_model
from tests.server.wire import CHAT, Answer, ask

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("host", "loopback", "url"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:80"),
        ("127.1.2.3", True, "http://127.1.2.3:80"),
        ("localhost", True, "http://localhost:80"),
        ("::1", True, "http://[::1]:80"),
        ("0.0.0.0", False, "http://127.0.0.1:80"),
        ("::", False, "http://[::1]:80"),
        ("192.168.0.7", False, "http://192.168.0.7:80"),
        ("example.org", False, "http://example.org:80"),
    ],
)
def test_addresses(host: str, loopback: bool, url: str) -> None:
    assert is_loopback(host) is loopback
    assert server_url(host, 80) == url


def test_the_curl_line_is_a_request() -> None:
    words = shlex.split(curl_line("http://h:1", with_key=True))
    assert words[:3] == ["curl", "-N", "http://h:1/v1/chat/completions"]
    assert json.loads(words[-1])["stream"] is True
    assert "authorization" in " ".join(words)
    assert "authorization" not in curl_line("http://h:1", with_key=False)


def test_the_open_door_is_hard_to_miss() -> None:
    lines = open_door_lines("0.0.0.0")
    assert len({len(lines[0]), len(lines[-1])}) == 1 and set(lines[0]) == {"!"}
    assert "0.0.0.0" in lines[1] and "CAUSERIE_API_KEY" in lines[2]


def test_show_prompt_is_the_prompt_and_its_ids() -> None:
    text, ids = prompt_lines(ScriptedModel())  # type: ignore[arg-type]
    assert text == "User: what is a token?\nAssistant:"
    assert ids.startswith(f"{len(text)} token ids: [85, 115")


def test_a_checkpoint_on_disk_answers_when_the_app_starts(tmp_path: Path) -> None:
    """The whole way: folder, proof, engine, prompt, stream; only the weights are random."""
    tokenizer = load_tiktoken(ROOT / "checkpoints/causette/tokenizer.tiktoken")
    model = tiny_model(vocab_size=tokenizer.vocab_size, width=16, ffn_width=16, num_layers=1)
    save_folder(tmp_path / "mine", model, tokenizer, "plain", COURSE_DEFAULTS, [], "A test.")
    settings = load_settings(
        ["--checkpoint", str(tmp_path / "mine"), "--device", "cpu", "--max-model-len", "48"]
    )
    app = create_app(settings)

    async def talk() -> list[Answer]:
        async with app.router.lifespan_context(app):
            assert await app.state.lifecycle.until_ready()
            body = {"messages": [{"role": "user", "content": "what is a token?"}], "max_tokens": 4, "seed": 1}
            return [await ask(app, CHAT, body), await ask(app, "/v1/models/mine"), await ask(app, "/health")]

    reply, card, health = asyncio.run(talk())
    assert reply.json["model"] == "mine" and reply.json["usage"]["prompt_tokens"] == 18
    assert 1 <= reply.json["usage"]["completion_tokens"] <= 4
    assert card.json["max_model_len"] == 48 and card.json["checkpoint"] == "mine"
    assert card.json["default_sampling"]["max_tokens"] == 160
    assert health.json["status"] == "ok"


def test_several_checkpoints_each_answer_to_their_name(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        save_folder(
            tmp_path / name, tiny_model(seed), ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "A test."
        )
    named = ["--checkpoint", str(tmp_path / "one"), "--checkpoint", f"mine={tmp_path / 'two'}"]
    app = create_app(load_settings([*named, "--device", "cpu"]))

    async def talk() -> list[Answer]:
        async with app.router.lifespan_context(app):
            assert await app.state.lifecycle.until_ready()
            body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "temperature": 0}
            asked = [ask(app, CHAT, body | {"model": name}) for name in ("one", "mine", "default", "two")]
            return [await ask(app, "/v1/models"), *[await one for one in asked]]

    models, one, mine, default, two = asyncio.run(talk())
    assert [card["id"] for card in models.json["data"]] == ["one", "mine"]
    said = [reply.json["choices"][0]["message"]["content"] for reply in (one, mine, default)]
    assert said[0] == said[2] != said[1]
    assert two.status == 404 and "one, mine" in two.json["error"]["message"]


def test_several_models_share_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        save_folder(tmp_path / name, tiny_model(), ByteTokenizer(), "plain", COURSE_DEFAULTS, [], "A test.")
    monkeypatch.setattr("llm.placement.free_memory", lambda device: 200 << 10)
    alone, *pair = (
        one.model.stats()[0].num_blocks
        for names in (["one"], ["one", "two"])
        for one in load(load_settings(arguments(tmp_path, names)))
    )
    assert 0 < pair[0] == pair[1] < alone / 2, "half of the memory each, weights included"


def arguments(folder: Path, names: list[str]) -> list[str]:
    return ["--device", "cpu", *(word for name in names for word in ("--checkpoint", str(folder / name)))]


def test_names_that_clash_or_say_nothing_are_refused(tiny_folder: Path) -> None:
    def refusal(*argv: str) -> str:
        with pytest.raises(CauserieError) as caught:
            load(load_settings([*argv, "--device", "cpu"]))
        return str(caught.value)

    twice = ["--checkpoint", str(tiny_folder), "--checkpoint", str(tiny_folder)]
    assert "write --checkpoint NAME=PATH" in refusal(*twice)
    assert "names one model" in refusal(*twice, "--served-model-name", "x")
    assert "one name, not two" in refusal("--checkpoint", f"a={tiny_folder}", "--served-model-name", "b")
    assert "causerie pull NAME" in refusal("--checkpoint", "no-such-model")
    assert "no-such-model" in refusal("--checkpoint", "a=no-such-model")


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"])
def test_what_cannot_be_served_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CauserieError) as caught:
        load(load_settings(["--checkpoint", str(path), "--device", "cpu"]))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_torch_leaves_one_core_to_the_event_loop(tiny_folder: Path) -> None:
    def threads(*more: str) -> int:
        (one,) = load(load_settings(["--checkpoint", str(tiny_folder), "--device", "cpu", *more]))
        runner = one.model.engines[0].runner
        return runner.num_threads if isinstance(runner, NativeRunner) else torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        assert threads() == usable_cores()
        assert threads("--runner", "eager") == max(1, usable_cores() - 1)
        for more in ((), ("--runner", "eager")):
            assert threads("--threads", "3", *more) == 3
    finally:
        torch.set_num_threads(before)
