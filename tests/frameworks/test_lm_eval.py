"""lm-evaluation-harness against POST /v1/completions: its scores are those of the model itself.

The tasks lie in `lm_eval/`: choices to rank, texts to score, replies to write. The harness cuts the text into
ids itself, with a tokenizer.json made of the checkpoint's `.tiktoken` file, and asks for `echo` with
`logprobs`. Here the same ids go through the model in this process, without server, engine and cache.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.checkpoint import Checkpoint, load_model, open_checkpoint
from llm.config import SamplingParams
from llm.generate import generate_cached
from llm.kv.concat import NoCache
from llm.model import Decoder
from tests.frameworks.environments import python_environment, run_step

TASKS = Path(__file__).parent / "lm_eval"
CAUSETTE = Path(__file__).parents[2] / "checkpoints" / "causette"
NAMES = ("causerie_choices", "causerie_texts", "causerie_replies")
MAX_LENGTH = 512
TOLERANCE = 1e-3
"""Of a sum of up to 900 log-probabilities; float32 logits of another batch shape differ in the last bits."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What the harness measured: aggregates by task, and each sample's answers in the data's order."""

    results: dict[str, dict[str, float]]
    samples: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def scored(causette: str, environments: Path, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """One prompt per request, as the harness does by default."""
    return evaluate(causette, environments, tmp_path_factory.mktemp("lm_eval"), batch_size=1)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(CAUSETTE)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Iterator[Decoder]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_model(checkpoint, torch.device("cpu"), torch.float32)
    torch.set_num_threads(before)


def evaluate(url: str, environments: Path, home: Path, *, batch_size: int) -> Scored:
    """Run the harness's own command."""
    python = python_environment(environments, TASKS / "requirements.txt")
    for file in TASKS.glob("*.jsonl"):  # the tasks name their data relative to where the command runs
        (home / file.name).write_text(file.read_text())
    write_tokenizer(home / "tokenizer")
    arguments = {
        "model": "causette",
        "base_url": f"{url}/v1/completions",
        "tokenizer": home / "tokenizer",
        "tokenizer_backend": "huggingface",
        "max_length": MAX_LENGTH,
        "num_concurrent": 1,
        "max_retries": 1,
    }
    command = [
        *(str(python), "-I", "-m", "lm_eval", "run", "--model", "local-completions"),
        *("--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())),
        *("--tasks", ",".join(NAMES), "--include_path", str(TASKS)),
        *("--batch_size", str(batch_size), "--output_path", str(home / "out"), "--log_samples"),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    run_step(command, url=url, home=home, environment=offline)
    (report,) = (home / "out").rglob("results_*.json")
    return Scored(
        json.loads(report.read_text())["results"],
        {name: read_samples(home / "out", name) for name in NAMES},
    )


def read_samples(out: Path, name: str) -> list[dict[str, Any]]:
    (file,) = out.rglob(f"samples_{name}_*.jsonl")
    with file.open() as lines:
        return sorted(map(json.loads, lines), key=lambda sample: int(sample["doc_id"]))


def write_tokenizer(folder: Path) -> None:
    """The default checkpoint's vocabulary as Hugging Face's tools read it."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    from llm.tokenizer.patterns import PATTERNS

    converter = TikTokenConverter(  # type: ignore[no-untyped-call]
        str(CAUSETTE / "tokenizer.tiktoken"),
        PATTERNS["gpt2"].regex,
        extra_special_tokens=["<|endoftext|>"],
    )
    made = converter.converted()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")  # type: ignore[no-untyped-call]
    assert tokenizer.eos_token_id == 50256
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_the_harness_is_given_our_own_ids(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = [document["text"] for document in documents("texts.jsonl")]
    for text in texts + [prompt_of(document) for document in documents("choices.jsonl")]:
        assert theirs(text, add_special_tokens=False).input_ids == checkpoint.tokenizer.encode(text)


@torch.inference_mode()
def score(model: Decoder, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Log-likelihood of the continuation's ids, and whether each is the likeliest."""
    ids = [*context, *continuation][: MAX_LENGTH - 1]
    assert len(ids) == len(context) + len(continuation)
    hidden = model(torch.tensor([ids]), torch.arange(len(ids)), NoCache())  # (1, T, C)
    logits = model.logits(hidden)[0, len(context) - 1 : -1].double()  # (len(continuation), V)
    picked = logits.log_softmax(-1).gather(1, torch.tensor(continuation).unsqueeze(1))
    return sum(picked[:, 0].tolist()), logits.argmax(-1).tolist() == continuation


def documents(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TASKS / name).read_text().splitlines()]


def prompt_of(document: dict[str, Any]) -> str:
    return f"System: You answer questions briefly.\nUser: {document['question']}\nAssistant:"


def close(value: float) -> Any:
    return pytest.approx(value, rel=0, abs=TOLERANCE)


@pytest.mark.slow
def test_choices_have_the_models_own_log_likelihoods(
    scored: Scored, checkpoint: Checkpoint, model: Decoder
) -> None:
    encode = checkpoint.tokenizer.encode
    num_right = num_right_by_length = 0
    kinds = set()
    for document, sample in zip(documents("choices.jsonl"), scored.samples["causerie_choices"], strict=True):
        context = encode(prompt_of(document))
        expected = [
            score(model, context, encode(f"{prompt_of(document)} {choice}")[len(context) :])
            for choice in document["choices"]
        ]
        measured = [(float(sum_), greedy == "True") for ((sum_, greedy),) in sample["resps"]]
        assert [greedy for _, greedy in measured] == [greedy for _, greedy in expected]
        kinds |= {greedy for _, greedy in expected}
        assert [sum_ for sum_, _ in measured] == [close(sum_) for sum_, _ in expected]
        sums = [sum_ for sum_, _ in expected]
        by_length = [sum_ / len(choice) for sum_, choice in zip(sums, document["choices"], strict=True)]
        num_right += sums.index(max(sums)) == document["answer"]
        num_right_by_length += by_length.index(max(by_length)) == document["answer"]
    results, count = scored.results["causerie_choices"], len(documents("choices.jsonl"))
    assert results["acc,none"] == num_right / count
    assert results["acc_norm,none"] == num_right_by_length / count
    assert num_right > count / 2, "the checkpoint knows these"
    assert kinds == {True, False}, "some it would say itself, some not"


@pytest.mark.slow
def test_texts_have_the_models_own_perplexity(scored: Scored, checkpoint: Checkpoint, model: Decoder) -> None:
    total = num_bytes = 0.0
    for document, sample in zip(documents("texts.jsonl"), scored.samples["causerie_texts"], strict=True):
        ids = checkpoint.tokenizer.encode(document["text"])
        expected = sum(score(model, *window)[0] for window in windows(ids, MAX_LENGTH - 2))
        ((measured,),) = sample["resps"]
        assert float(measured) == close(expected)
        total += expected
        num_bytes += len(document["text"].encode())
    assert len(ids) > MAX_LENGTH, "one text does not fit the context at once"
    results = scored.results["causerie_texts"]
    assert results["bits_per_byte,none"] == pytest.approx(-total / num_bytes / math.log(2), rel=1e-6)
    assert results["byte_perplexity,none"] == pytest.approx(math.exp(-total / num_bytes), rel=1e-6)


def windows(ids: list[int], size: int) -> Iterator[tuple[list[int], list[int]]]:
    """Every id once, the first after an end of text, each window's context as long as the window allows."""
    yield [50256], ids[:size]
    for start in range(size, len(ids), size):
        part = ids[start : start + size]
        end = start + len(part)
        yield ids[end - size - 1 : start], part


@pytest.mark.slow
def test_replies_are_the_models_own(scored: Scored, checkpoint: Checkpoint, model: Decoder) -> None:
    params = SamplingParams(temperature=0, max_tokens=40)
    for document, sample in zip(documents("choices.jsonl"), scored.samples["causerie_replies"], strict=True):
        ids, _ = generate_cached(model, checkpoint.tokenizer.encode(prompt_of(document)), params)
        ((measured,),) = sample["resps"]
        assert measured == checkpoint.tokenizer.decode(ids).partition("\n")[0]


@pytest.mark.slow
def test_several_prompts_per_request_score_the_same(
    scored: Scored, causette: str, environments: Path, tmp_path: Path
) -> None:
    together = evaluate(causette, environments, tmp_path, batch_size=8)
    for task in ("causerie_choices", "causerie_texts"):
        for one, many in zip(scored.samples[task], together.samples[task], strict=True):
            assert sums_of(many) == [close(value) for value in sums_of(one)]
    for one, many in zip(
        scored.samples["causerie_replies"], together.samples["causerie_replies"], strict=True
    ):
        assert one["resps"] == many["resps"]
    assert together.results["causerie_choices"]["acc,none"] == scored.results["causerie_choices"]["acc,none"]


def sums_of(sample: dict[str, Any]) -> list[float]:
    """A sample's log-likelihoods: [[sum]] of a text, [[[sum, is greedy]], ...] of choices."""
    answers = [answer for (answer,) in sample["resps"]]
    return [float(answer[0] if isinstance(answer, list) else answer) for answer in answers]
