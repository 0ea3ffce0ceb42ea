"""The prompt proof: what is served is what was trained, mask included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llm.chat.template import Message, PlainTemplate, encode_segments
from llm.checkpoint import Checkpoint, Sample, open_checkpoint, prove_prompts, save_folder
from llm.config import GenerationDefaults
from llm.errors import CheckpointError, PromptMismatch
from llm.tokenizer import ByteTokenizer
from tests.fakes import tiny_model

SYSTEM = "Be brief."
TALK = [
    Message("user", "hi é\nthere"),
    Message("assistant", "hello"),
    Message("user", "bye"),
    Message("assistant", ""),
]


def trained_on(messages: list[Message], system: str | None = SYSTEM) -> Sample:
    ids, trained = encode_segments(ByteTokenizer(), PlainTemplate(system).render(messages, generate=False))
    return Sample(messages, ids, trained)


def saved(path: Path, *samples: Sample) -> Checkpoint:
    defaults = GenerationDefaults(default_system=SYSTEM)
    save_folder(path / "tiny", tiny_model(), ByteTokenizer(), "plain", defaults, samples, "")
    return open_checkpoint(path / "tiny")


def test_samples_come_back_and_are_proved(tmp_path: Path) -> None:
    samples = [trained_on(TALK), trained_on([Message("system", "x"), *TALK])]
    checkpoint = saved(tmp_path, *samples)
    assert checkpoint.samples == samples
    assert prove_prompts(checkpoint) == 2
    assert prove_prompts(saved(tmp_path)) == 0


def test_another_system_line_is_a_mismatch_that_shows_both_texts(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, trained_on(TALK), trained_on(TALK, system="Be kind."))
    with pytest.raises(PromptMismatch) as caught:
        prove_prompts(checkpoint)
    assert str(caught.value) == (
        f"{checkpoint.path}: prompt proof failed: sample 2 differs at token 11: "
        "trained on 'kind.\\nUs' (prompt, id 107), served as 'brief.\\nU' (prompt, id 98)"
    )


def test_another_mask_is_a_mismatch(tmp_path: Path) -> None:
    sample = trained_on(TALK)
    first = sample.trained.index(True)
    masked = replace(sample, trained=[False if i == first else t for i, t in enumerate(sample.trained)])
    with pytest.raises(PromptMismatch, match=rf"sample 1 differs at token {first}: .*\(prompt, .*\(reply, "):
        prove_prompts(saved(tmp_path, masked))


def test_a_longer_training_text_is_a_mismatch(tmp_path: Path) -> None:
    sample = trained_on(TALK)
    longer = Sample(sample.messages, [*sample.ids, 256], [*sample.trained, True])
    with pytest.raises(PromptMismatch, match=r"served as nothing \(the text ends\)"):
        prove_prompts(saved(tmp_path, longer))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[]", "line 1: expected a JSON object"),
        ('{"messages": [], "ids": []}', "trained is missing"),
        ('{"messages": [], "ids": [257], "trained": [true]}', "ids must be whole numbers below"),
        ('{"messages": [], "ids": [true], "trained": [true]}', "ids must be whole numbers below"),
        ('{"messages": [], "ids": [1], "trained": []}', "trained must be 1 times true or false"),
        ('{"messages": [], "ids": [1], "trained": [1]}', "trained must be 1 times true or false"),
        ('{"messages": ["x"], "ids": [], "trained": []}', "messages must be objects"),
        ('{"messages": [{"role": "x", "content": ""}], "ids": [], "trained": []}', "role must be one of"),
        ('{"messages": [{"role": "user"}], "ids": [], "trained": []}', "content is missing"),
        ('{"messages": [], "ids": [], "trained": [], "x": 1}', "unknown field 'x'"),
    ],
)
def test_a_malformed_sample_is_refused(tmp_path: Path, line: str, said: str) -> None:
    checkpoint = saved(tmp_path)
    (checkpoint.path / "samples.jsonl").write_text(line + "\n")
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(checkpoint.path)
