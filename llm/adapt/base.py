"""An adapter and the checkpoint it goes on: is it the one, is the adapter spoken to as it was in training?

Refuses to know what is done with the adapter.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from llm.adapt.adapter import Adapter
from llm.adapt.peft import MAX_RANK, open_adapter
from llm.checkpoint import Checkpoint, Sample, prove_prompts
from llm.checkpoint.samples import read_samples

log = logging.getLogger(__name__)

SAMPLES = "samples.jsonl"


def open_for(checkpoint: Checkpoint, path: Path, max_rank: int = MAX_RANK) -> tuple[Adapter, list[Sample]]:
    """Read an adapter for this base, and the conversations it was trained on, when it carries some. That it
    was trained on other weights is a warning: shapes do not tell, and each format of a base has its own.

    Raises:
        CheckpointError: it cannot be applied to this base.
        PromptMismatch: the base's template renders its conversations otherwise than they were trained.
    """
    adapter = open_adapter(path, checkpoint.config, max_rank)
    if adapter.base_digest not in ("", checkpoint.digest):
        log.warning(
            "adapter %s was trained on %s (%s), this is %s (%s): if its weights differ, answers are worse",
            path,
            adapter.base,
            adapter.base_digest,
            checkpoint.name,
            checkpoint.digest,
        )
    file = path / SAMPLES
    samples = read_samples(file, checkpoint.tokenizer.vocab_size) if file.exists() else []
    prove_prompts(replace(checkpoint, path=path, samples=samples))
    return adapter, samples
