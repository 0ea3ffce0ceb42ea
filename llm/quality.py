"""What a format costs in quality: how far its next-token probabilities are from the unquantised model's.

    causerie quality --checkpoint checkpoints/causette --quantization auto,int8,int4 --positions 512

Both models read the same text, each position with the true tokens before it (teacher forcing). Of every
position, p the reference's distribution and q the format's, over the ids that may be drawn:

    KL           Σ p · (ln p − ln q), in nats: 0 for equal distributions
    top-1        whether both hold the same id for the most probable
    perplexity   exp of the mean of −ln of the probability of the token that did follow

All in float64. The reference is the checkpoint as it is stored, unpacked to float32: of weights that are
stored in groups, `auto` keeps every bit, and what is left is the rounding of activations and of the KV cache.
With --against-checkpoint it is another one, such as the original of a quantised folder.
A conversation is read as it would be served: alone, rendered by the checkpoint's template; what it shares
with the one before, such as a system prompt, counts once. Refuses to know what a format is and which kernel
computes it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from os.path import commonprefix
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch
from torch import Tensor

from llm.batch import Batch, Chunk
from llm.chat.template import Message
from llm.checkpoint import Checkpoint, locate_checkpoint, open_checkpoint
from llm.config import BLOCK_SIZE, EngineConfig, SamplingParams
from llm.errors import DataError, OptionError, StepFailed
from llm.eval.cases import read_cases
from llm.hardware import describe, usable_cores
from llm.likelihood import Likelihood
from llm.load import make_runner
from llm.placement import KVType, RunnerName, resolve_places
from llm.runner import Runner
from llm.runner.eager import EagerRunner
from llm.runner.native.runner import NativeRunner
from llm.runner.native.weights import Quantization
from llm.sequence import Sequence as Tokens
from llm.train.data import encode_chat, encode_file
from llm.train.facts import read_facts, read_unknown
from llm.train.options import run_command

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "checkpoints" / "data"
FORMATS: tuple[str, ...] = get_args(Quantization)
CACHES: tuple[str, ...] = get_args(KVType)
ROWS_AT_ONCE = 64
"""Positions computed and compared together: 64 of 150,000 ids are 77 MB in float64, and four times as much
for what is computed with them."""


@dataclass(frozen=True, slots=True)
class Quality:
    """A model beside its reference, on the same positions.

    Attributes:
        num_positions: positions compared.
        reference_perplexity, perplexity: of the text, by either model.
        mean_kl, p99_kl, max_kl: of KL(reference ‖ other) in nats; p99 is interpolated between two positions.
        top1: the share of positions with the same most probable id.
    """

    num_positions: int
    reference_perplexity: float
    perplexity: float
    mean_kl: float
    p99_kl: float
    max_kl: float
    top1: float


@dataclass(frozen=True, slots=True)
class Window:
    """A text that is read from its beginning, nothing before it seen.

    Attributes:
        ids: at least two; the last one is only predicted.
        first: the first position that counts, below len(ids) - 1.
    """

    ids: Sequence[int]
    first: int = 0

    @property
    def num_positions(self) -> int:
        """Positions that count."""
        return len(self.ids) - 1 - self.first


def compare(
    reference: Runner, other: Runner, ids: Sequence[int], window: int, *, vocab_size: int | None = None
) -> Quality:
    """Two models on one text of at least two ids, in windows of that many positions; see compare_windows."""
    return compare_windows(reference, other, cut(ids, window), vocab_size=vocab_size)


def compare_windows(
    reference: Runner, other: Runner, windows: Sequence[Window], *, vocab_size: int | None = None
) -> Quality:
    """Two models on the same windows, at least one.

    Args:
        reference, other: with KV blocks of BLOCK_SIZE tokens, enough for the longest window, and room for
            ROWS_AT_ONCE tokens in a step. Their caches are overwritten.
        vocab_size: ids that may be drawn; those beyond count for nothing. None for all.

    Raises:
        StepFailed: logits that are not finite.
    """
    parts = [part for window in windows for part in _read(reference, other, window, vocab_size)]
    kl, same, expected, found = (torch.cat(column) for column in zip(*parts, strict=True))  # (T,) each
    return Quality(
        num_positions=len(kl),
        reference_perplexity=_perplexity(expected),
        perplexity=_perplexity(found),
        mean_kl=float(kl.mean()),
        p99_kl=float(np.quantile(kl.numpy(), 0.99)),
        max_kl=float(kl.max()),
        top1=float(same.double().mean()),
    )


def cut(ids: Sequence[int], window: int, first: int = 0) -> list[Window]:
    """A text as windows of that many positions, of which those from `first` on count, each in one window.

    A window has one id more than positions, and the next begins with it: [a b c d], 2 → [a b c], [c d].
    """
    assert window >= 1, window
    starts = range(first // window * window, len(ids) - 1, window) if first < len(ids) - 1 else range(0)
    return [Window(ids[start : start + window + 1], max(first - start, 0)) for start in starts]


def _read(
    reference: Runner, other: Runner, window: Window, vocab_size: int | None
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Of each stretch of the positions that count: KL, whether the best ids are the same, and the log
    probabilities of the ids that follow, by either model; (rows,) each.
    """
    num_computed = len(window.ids) - 1
    assert 0 <= window.first < num_computed, (window.first, num_computed)
    tokens = Tokens(
        list(window.ids),
        SamplingParams(max_tokens=1, prompt_logprobs=0),  # the logits of every position are wanted
        num_scored=window.first,  # but for these
        block_ids=list(range(-(-num_computed // BLOCK_SIZE))),
    )
    for start in range(0, num_computed, ROWS_AT_ONCE):
        chunk = Chunk(tokens, start, min(ROWS_AT_ONCE, num_computed - start))
        # One after the other: a runner's logits last until its next run, and both may be the same runner.
        expected = _log_probs(reference, Batch([chunk]), vocab_size)
        found = _log_probs(other, Batch([chunk]), vocab_size)
        following = torch.tensor([window.ids[position + 1] for position in chunk.scored], dtype=torch.long)
        yield (
            (expected.exp() * (expected - found)).sum(1).clamp_min(0.0),  # below 0 by rounding alone
            expected.argmax(1) == found.argmax(1),
            expected.gather(1, following[:, None])[:, 0],
            found.gather(1, following[:, None])[:, 0],
        )


def _log_probs(runner: Runner, batch: Batch, vocab_size: int | None) -> Tensor:
    """A copy of its own on the CPU, float64 (rows, ids)."""
    logits = runner.run(batch).logits.cpu()[:, :vocab_size]
    if not bool(logits.isfinite().all()):
        raise StepFailed("the model produced logits that are not finite")
    return torch.log_softmax(logits, dim=1, dtype=torch.float64)


def _perplexity(log_probs: Tensor) -> float:
    return Likelihood(-float(log_probs.sum()), len(log_probs)).perplexity


def read_windows(path: Path | None, checkpoint: Checkpoint, num_positions: int) -> list[Window]:
    """The first positions of a text, as windows that fit the model.

    Args:
        path: conversations when it ends with .jsonl, else one plain text; None for questions the default
            checkpoint was never taught, and their answers.
        num_positions: as many as the text has when those are fewer.

    Raises:
        DataError, RequestError: the text cannot be used, or is too short for one position.
    """
    longest = checkpoint.config.num_positions
    tokenizer, template = checkpoint.tokenizer, checkpoint.template
    if path is None:
        texts = [encode_chat(tokenizer, template, chat).ids.tolist() for chat in _held_out()]
    else:
        texts = encode_file(path, tokenizer, template)
    shared = [len(commonprefix(pair)) for pair in pairwise([[], *texts])]
    windows = [w for text, first in zip(texts, shared, strict=True) for w in cut(text, longest, first)]
    if not windows:
        raise DataError(f"{path}: {sum(map(len, texts))} tokens, at least 2 are needed")
    before = accumulate((window.num_positions for window in windows), initial=0)
    return [
        replace(window, ids=window.ids[: window.first + num_positions - seen + 1])
        for window, seen in zip(windows, before, strict=False)
        if seen < num_positions
    ]


def _held_out() -> list[list[Message]]:
    """The test's questions with the answers they should get, in an order that is always the same: neighbours
    in the file ask for the same fact.
    """
    known = [*read_facts(DATA / "facts"), read_unknown(DATA / "unknown.jsonl")]
    facts = {fact.id: fact for fact in known}
    cases = read_cases(DATA / "test.jsonl", facts)
    random.Random(0).shuffle(cases)
    return [[*case.messages, Message("assistant", facts[case.fact].answer)] for case in cases]


def check_comparable(original: Checkpoint, checkpoint: Checkpoint, windows: Sequence[Window]) -> None:
    """That both mean the same by an id, as far as the windows show, and that the original can read them.

    Raises:
        OptionError: they do not, or it cannot.
    """
    asked = f"--against-checkpoint {original.path}"
    theirs, ours = original.tokenizer, checkpoint.tokenizer
    if (theirs.vocab_size, dict(theirs.control)) != (ours.vocab_size, dict(ours.control)):
        raise OptionError(f"{asked}: {theirs.vocab_size} ids, not the {ours.vocab_size} of {checkpoint.name}")
    ids = {i for window in windows for i in window.ids}
    if other := [i for i in ids if theirs.token_bytes(i) != ours.token_bytes(i)]:
        raise OptionError(f"{asked}: id {other[0]} is another token than that of {checkpoint.name}")
    longest = max(len(window.ids) for window in windows) - 1
    if longest > original.config.num_positions:
        raise OptionError(f"{asked}: {original.config.num_positions} positions, the text has {longest}")


def parse_formats(text: str) -> list[str]:
    """Names of formats, each once: "auto,int8" → ["auto", "int8"].

    Raises:
        OptionError: one that is not known.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in FORMATS:
            raise OptionError(f"--quantization {name!r} is not one of {', '.join(FORMATS)}")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; exit status 2 for an option, a text or a checkpoint that cannot be used."""
    parser = argparse.ArgumentParser(description="Compare quantised formats with the unquantised model.")
    add = parser.add_argument
    add("--checkpoint", default="checkpoints/causette", help="file or folder (default: %(default)s)")
    add("--quantization", default="auto,int8,int4", help="formats, comma-separated (default: %(default)s)")
    add("--kv-cache-dtype", choices=CACHES, default="auto", help="of the formats (default: %(default)s)")
    add("--text", type=Path, help="plain text or chat .jsonl (default: questions about this project)")
    add("--positions", type=int, default=512, help="positions compared (default: %(default)s)")
    add(
        "--reference", choices=("eager", "native"), default="eager", help="who computes the unquantised model"
    )
    add("--against-checkpoint", type=Path, metavar="PATH", help="the reference, if it is another checkpoint")
    add("--threads", type=int, help="default: every usable core")
    add("--json", type=Path, help="also write the JSON line to this file")
    return run_command(parser, _measure, argv)


def _measure(options: argparse.Namespace) -> int:
    formats = parse_formats(options.quantization)
    for name in ("positions", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise OptionError(f"--{name} must be at least 1, got {value}")
    threads = usable_cores() if options.threads is None else options.threads
    checkpoint = open_checkpoint(locate_checkpoint(Path(options.checkpoint), ROOT))
    windows = read_windows(options.text, checkpoint, options.positions)
    longest = max(len(window.ids) for window in windows) - 1
    load = _loader(checkpoint, longest, threads)
    original = checkpoint
    if options.against_checkpoint is not None:
        original = open_checkpoint(locate_checkpoint(options.against_checkpoint, ROOT))
        check_comparable(original, checkpoint, windows)
    reference = _loader(original, longest, threads)("none", "float32", options.reference)
    print(f"hardware   {describe(CPU)}")
    print(
        f"model      {checkpoint.name}, {checkpoint.kind}; weights stored as {', '.join(checkpoint.stored)}"
    )
    print(f"text       {_text_name(options)}: {len(windows)} windows of at most {longest} positions")
    print(f"reference  {original.name}, {reference.about}; {_megabytes(reference):.1f} MB of weights")
    print(_row("format", "weights MB", "perplexity", "Δ %", "mean KL", "p99 KL", "top-1 %", "positions"))
    vocab_size = min(checkpoint.config.vocab_size, checkpoint.tokenizer.vocab_size)
    rows = {}
    for name in formats:
        other = load(name, options.kv_cache_dtype, "native")
        quality = compare_windows(reference, other, windows, vocab_size=vocab_size)
        rows[name] = {"runner": other.about, "weights_mb": round(_megabytes(other), 2), **asdict(quality)}
        print(_quality_row(name, _megabytes(other), quality), flush=True)
    found = {"checkpoint": checkpoint.name, "digest": checkpoint.digest, "against": original.name}
    _finish(options, {**found, "formats": rows})
    return 0


def _loader(checkpoint: Checkpoint, longest: int, threads: int) -> Callable[[str, str, str], Runner]:
    """(quantization, KV cache's type, runner's name) → that runner of the checkpoint, for one window."""
    config = EngineConfig(max(longest, 2), max_num_seqs=1, max_num_batched_tokens=ROWS_AT_ONCE)

    def load(quantization: str, cache: str, runner: str) -> Runner:
        (place,) = resolve_places(
            checkpoint,
            "cpu",
            runner=cast(RunnerName, runner),
            quantization=cast(Quantization, quantization),
            kv_cache_dtype=cast(KVType, cache),
        )
        made = make_runner(checkpoint, config, place, threads=threads)
        torch.set_num_threads(threads)  # runners take turns here, and the comparison is torch's
        return made

    return load


def _finish(options: argparse.Namespace, found: dict[str, object]) -> None:
    """The last line: what was asked and what was found, for programs."""
    asked = {
        "text": _text_name(options),
        "reference": options.reference,
        "kv_cache_dtype": options.kv_cache_dtype,
    }
    line = json.dumps({"bench": "quality", **asked, **found})
    print(line)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(line + "\n")


def _text_name(options: argparse.Namespace) -> str:
    return "checkpoints/data" if options.text is None else str(options.text)


def _megabytes(runner: Runner) -> float:
    """Of its weights in memory."""
    if isinstance(runner, NativeRunner):
        return runner.weight_bytes / 1e6
    assert isinstance(runner, EagerRunner)
    return sum(parameter.nbytes for parameter in runner.model.parameters()) / 1e6


def _quality_row(name: str, megabytes: float, quality: Quality) -> str:
    return _row(
        name,
        f"{megabytes:.1f}",
        f"{quality.perplexity:#.4g}",
        f"{(quality.perplexity / quality.reference_perplexity - 1) * 100:+.2f}",
        f"{quality.mean_kl:.2e}",
        f"{quality.p99_kl:.2e}",
        f"{quality.top1 * 100:.2f}",
        str(quality.num_positions),
    )


def _row(first: str, *others: str) -> str:
    return f"{first:<8}" + "".join(f"{text:>12}" for text in others)


if __name__ == "__main__":
    sys.exit(main())
