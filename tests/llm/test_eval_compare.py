"""Two checkpoints side by side: the command, its figures, and how far they are apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llm.chat.template import Message, PlainTemplate
from llm.checkpoint import save_folder
from llm.config import COURSE_DEFAULTS, GenerationDefaults
from llm.eval.__main__ import main
from llm.eval.divergence import answer_window, same_vocabulary
from llm.kv.concat import NoCache
from llm.model import Decoder
from llm.tokenizer import ByteTokenizer
from tests.fakes import tiny_model

QUESTIONS = ["hi", "what is a token?", "which port?"]


def save(folder: Path, seed: int) -> Decoder:
    model = tiny_model(seed, num_positions=128)
    defaults = GenerationDefaults(stop=COURSE_DEFAULTS.stop)
    save_folder(folder, model, ByteTokenizer(), "plain", defaults, [], "#", dtype=torch.float32)
    return model


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, questions with what they expect, and texts."""
    folder = tmp_path_factory.mktemp("compare")
    for seed in (0, 1):
        save(folder / f"m{seed}", seed)
    lines = [{"question": q, "expect": [["zebra"]]} for q in QUESTIONS]
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "t.jsonl").write_text('{"text": "some words"}\n')
    return folder


def run(house: Path, capsys: pytest.CaptureFixture[str], first: str, second: str, *flags: str) -> dict:  # type: ignore[type-arg]
    both = ["--checkpoint", str(house / first), "--against", str(house / second), "--device", "cpu"]
    files = ["--data", str(house / "q.jsonl"), "--score", str(house / "t.jsonl"), "--max-tokens", "12"]
    assert main([*both, *files, *flags]) == 0
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


@torch.inference_mode()
def mean_kl(one: Decoder, two: Decoder, asked: list[tuple[str, str]]) -> float:
    """The slow twin: whole conversations, position by position."""
    found = []
    for question, answer in asked:
        before = f"User: {question}\nAssistant:".encode()
        ids = list(before + f" {answer}\n".encode())
        p, q = (
            torch.log_softmax(m.logits(m(torch.tensor([ids]), torch.arange(len(ids)), NoCache()))[0], 1)
            for m in (one, two)
        )
        for i in range(len(before) - 1, len(ids) - 1):
            found.append(float((p[i, :257].exp() * (p[i, :257] - q[i, :257])).sum()))
    return sum(found) / len(found)


def test_the_figures_of_two(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run(house, capsys, "m0", "m1")
    alone = run(house, capsys, "m1", "m0")
    assert (told["checkpoint"], told["against"]["checkpoint"]) == ("m0", "m1")
    assert told["against"]["likelihood"] == alone["likelihood"], "the same texts, whoever comes first"
    assert told["questions"] == 3 and told["kl"]["mean_kl"] > 0
    assert told["likelihood"]["num_tokens"] == len("some words") - 1


def test_a_checkpoint_beside_itself_is_nowhere_apart(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run(house, capsys, "m0", "m0", "--report", str(house / "same.md"))
    assert told["kl"]["mean_kl"] == told["kl"]["max_kl"] == 0.0 and told["kl"]["top1"] == 1.0
    assert told["checkpoint"] == str(house / "m0"), "of one name, they are told apart by their places"
    page = (house / "same.md").read_text()
    assert "## The same words: 3" in page and "Other words" not in page


def test_the_report_has_the_answers_and_kl_of_a_slow_twin(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from llm.eval.cases import read_cases
    from llm.eval.compare import Terms, compare, examine
    from llm.eval.report import pairs

    terms = Terms(cases=read_cases(house / "q.jsonl", {}), max_tokens=12, devices="cpu", seeds=(None, 1))
    found = compare(examine(str(house / "m0"), terms), examine(str(house / "m1"), terms), terms)
    asked = list(zip(QUESTIONS, found.first.answers[0], strict=True))
    models = [tiny_model(seed, num_positions=128) for seed in (0, 1)]
    assert found.divergence is not None
    assert found.divergence.mean_kl == pytest.approx(mean_kl(*models, asked), rel=1e-3)
    assert [len(pair.said) for pair in pairs(found)] == [2, 2, 2]


def test_the_window_is_the_answer_as_training_writes_it() -> None:
    tokenizer, template = ByteTokenizer(), PlainTemplate()
    window = answer_window(tokenizer, template, [Message("user", "hi")], "yes", 99)
    assert window is not None
    assert bytes(window.ids[window.first + 1 :]) == b" yes\n"
    assert answer_window(tokenizer, template, [Message("user", "hi" * 50)], "yes", 99) is None
    short = answer_window(tokenizer, template, [Message("user", "hi")], "yes", 22)
    assert short is not None and len(short.ids) == 22


def test_a_vocabulary_is_its_ids_and_its_control_tokens() -> None:
    class Other(ByteTokenizer):
        control = {"<a>": 256}

    class Shifted(ByteTokenizer):
        def token_bytes(self, token_id: int) -> bytes:
            return super().token_bytes(token_id ^ 1)

    assert same_vocabulary(ByteTokenizer(), ByteTokenizer())
    assert not same_vocabulary(ByteTokenizer(), Other())
    assert not same_vocabulary(ByteTokenizer(), Shifted())
