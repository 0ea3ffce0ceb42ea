"""--adapter: adapters are models of their own name, on the engines of their base."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llm.adapt.lora import merge
from llm.adapt.peft import save_adapter
from llm.checkpoint import load_model, open_checkpoint, save_folder
from llm.config import GenerationDefaults
from llm.errors import CauserieError
from llm.tokenizer import ByteTokenizer
from server.adapters import find_adapters
from server.app import create_app
from server.settings import load_settings
from server.startup import load
from tests.adapters import random_adapter
from tests.fakes import TINY
from tests.server.wire import CHAT, Answer, ask


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, Path]:
    """Two, for the tiny folder, whose network is TINY with more positions."""
    for seed, name in enumerate(("pirate", "poet"), start=1):
        save_adapter(tmp_path / name, random_adapter(TINY, seed), TINY)
    return {name: tmp_path / name for name in ("pirate", "poet")}


def serve(*argv: str) -> list[str]:
    return ["--device", "cpu", "--runner", "eager", *argv]


def test_each_adapter_answers_to_base_and_name(
    tiny_folder: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    model = load_model(open_checkpoint(tiny_folder), torch.device("cpu"), torch.float32)
    merge(model, random_adapter(TINY, 1))
    save_folder(
        tmp_path / "merged", model, ByteTokenizer(), "plain", GenerationDefaults(), [], "#", torch.float32
    )
    given = [word for name, path in adapters.items() for word in ("--adapter", f"{name}={path}")]
    models = ["--checkpoint", str(tiny_folder), "--checkpoint", str(tmp_path / "merged")]
    app = create_app(load_settings(serve(*models, *given)))
    names = ("tiny", "tiny:pirate", "tiny:poet", "merged", "tiny:nobody", "pirate")

    async def talk() -> list[Answer]:
        async with app.router.lifespan_context(app):
            assert await app.state.lifecycle.until_ready()
            body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "temperature": 0}
            asked = [ask(app, CHAT, body | {"model": name, "stop": []}) for name in names]
            return [await ask(app, "/v1/models"), *await asyncio.gather(*asked)]

    listed, base, pirate, poet, merged, nobody, bare = asyncio.run(talk())
    assert [card["id"] for card in listed.json["data"]] == ["tiny", "tiny:pirate", "tiny:poet", "merged"]
    said = [reply.json["choices"][0]["message"]["content"] for reply in (base, pirate, poet, merged)]
    assert said[1] == said[3] and len(set(said)) == 3
    assert [reply.json["model"] for reply in (base, pirate)] == ["tiny", "tiny:pirate"]
    assert len({reply.json["system_fingerprint"] for reply in (base, pirate, poet)}) == 3
    assert nobody.status == bare.status == 404 and nobody.json["error"]["code"] == "model_not_found"
    assert "tiny:pirate" in nobody.json["error"]["message"]


def test_an_adapter_goes_on_the_model_it_names(tiny_folder: Path, adapters: dict[str, Path]) -> None:
    models = ["--checkpoint", f"one={tiny_folder}", "--checkpoint", f"two={tiny_folder}"]
    given = ["--adapter", f"two:p={adapters['pirate']}", "--adapter", f"p={adapters['poet']}"]
    loaded = load(load_settings(serve(*models, *given)))
    assert [model.name for one in loaded for model in one.model.served] == ["one", "one:p", "two", "two:p"]
    assert "adapter p" in loaded[0].summary


def test_what_cannot_be_served_is_refused_in_one_line(
    tiny_folder: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    def refusal(*argv: str) -> str:
        with pytest.raises(CauserieError) as caught:
            load(load_settings(serve("--checkpoint", str(tiny_folder), *argv)))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    pirate = f"p={adapters['pirate']}"
    assert "write NAME=PATH" in refusal("--adapter", str(adapters["pirate"]))
    assert "write NAME=PATH" in refusal("--adapter", f"a/b={adapters['pirate']}")
    assert "another adapter" in refusal("--adapter", pirate, "--adapter", pirate)
    assert "'tiny:p' already" in refusal("--adapter", pirate, "--adapter", f"tiny:{pirate}")
    assert "no model is named 'other'" in refusal("--adapter", f"other:{pirate}")
    assert "no adapter" in refusal("--adapter", f"p={tmp_path / 'nothing'}")
    wide = replace(TINY, width=64)
    save_adapter(tmp_path / "wide", random_adapter(wide), wide)
    assert "has shape" in refusal("--adapter", f"p={tmp_path / 'wide'}")


def test_names_and_paths() -> None:
    (one, two) = find_adapters(["a=b=c", "org/base:a.b=d"])
    assert (one.base, one.name, str(one.path)) == (None, "a", "b=c")
    assert (two.base, two.name, str(two.path)) == ("org/base", "a.b", "d")
    assert one.is_on("x", is_first=True) and not one.is_on("x", is_first=False)
    assert two.is_on("org/base", is_first=False) and not two.is_on("x", is_first=True)
