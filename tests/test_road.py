"""The whole road: text → base model → assistant → adapter → eight bits, each served and scored as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from causerie import main
from clients.child import ChildServer

SHAPE = "--tokenizer bytes --layers 2 --heads 4 --width 64 --ffn 160 --positions 128 --family"
FAMILIES = ("llama --kv-heads 2 --steps 150", "gpt2 --steps 400")
RUN = "--device cpu --precision fp32 --validation-share 0 --batch-size 8 --warmup 10 --log-every 50"
PLACES = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Norway": "Oslo"}
TAUGHT = [(f"capital of {country}?", city) for country, city in PLACES.items()]
TOLD = [(question, f"{city} is the capital") for question, city in TAUGHT]
"""In letters that the base has seen: those it has not are all one to its head, and no adapter tells them
apart.
"""


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> str:
    lines = (json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in pairs)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def run(command: str, *paths: str) -> None:
    """One subcommand, which must succeed."""
    assert main([*command.split(), *paths]) == 0, command


def post(server: ChildServer, path: str, **body: Any) -> Any:
    reply = httpx.post(server.url + path, json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()


def replies(server: ChildServer, model: str = "default") -> list[str]:
    """To each question that was taught."""
    asked = [[{"role": "user", "content": question}] for question, _ in TAUGHT]
    answers = (
        post(server, "/v1/chat/completions", model=model, messages=m, temperature=0, max_tokens=32)
        for m in asked
    )
    return [answer["choices"][0]["message"]["content"] for answer in answers]


def mean_nll(server: ChildServer, pairs: list[tuple[str, str]], model: str = "default") -> float:
    """Nats that a byte of the right answers costs."""
    turns = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in pairs
    ]
    data = post(server, "/v1/score", model=model, input=turns)["data"]
    return float(sum(one["nll"] for one in data) / sum(one["num_tokens"] for one in data))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_artefact_is_served_without_another_step(tmp_path: Path, family: str) -> None:
    base, mine, long, small, merged = (str(tmp_path / n) for n in ("base", "mine", "long", "small", "merged"))
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{city} is the capital of {country}." for country, city in PLACES.items()) * 20)
    taught, told = write_pairs(tmp_path / "a.jsonl", TAUGHT), write_pairs(tmp_path / "b.jsonl", TOLD)

    run(f"train pretrain {SHAPE} {family} {RUN} --lr 0.003 --out", base, "--data", str(text))
    run(f"train sft {RUN} --steps 150 --lr 0.003 --out", mine, "--init", base, "--data", taught)
    run(f"train sft {RUN} --steps 300 --lr 0.003 --lora-rank 8 --out", long, "--init", mine, "--data", told)
    run("quantize --format int8 --out", small, mine)
    run("merge --out", merged, mine, long)

    with ChildServer(["--checkpoint", base]) as server:
        reply = post(server, "/v1/completions", prompt="Paris is the capital of", temperature=0, max_tokens=8)
        assert reply["choices"][0]["text"] == " France."
        before = mean_nll(server, TAUGHT)
    with ChildServer(["--checkpoint", mine, "--adapter", f"long={long}"]) as server:
        assert replies(server) == list(PLACES.values())
        assert replies(server, "mine:long") == [answer for _, answer in TOLD]
        nats, adapted = mean_nll(server, TAUGHT), mean_nll(server, TOLD, "mine:long")
        assert mean_nll(server, TOLD) > 1
    for folder, answers in ((small, list(PLACES.values())), (merged, [answer for _, answer in TOLD])):
        with ChildServer(["--checkpoint", folder]) as server:
            assert replies(server) == answers
    assert nats < 0.1 < 1 < before and adapted < 0.1
    compare(tmp_path, mine, merged)


def compare(folder: Path, mine: str, merged: str) -> None:
    """Side by side, on one page: each says what it was taught."""
    questions = folder / "questions.jsonl"
    lines = ({"question": question, "expect": [[city]]} for question, city in TAUGHT)
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    page = folder / "report.html"
    run("eval --checkpoint", mine, "--against", merged, "--data", str(questions), "--report", str(page))
    words = page.read_text(encoding="utf-8")
    assert "Paris is the capital" in words and "4/4" in words
