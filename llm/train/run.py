"""One training run from flags to a servable folder: the model to start with, the steps, the save.

A run stopped by Ctrl-C or SIGTERM ends with status 130, everything saved for `--resume`. Refuses to know what
a document or a conversation is.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llm.adapt.lora import Adapter
from llm.chat.template import ChatTemplate, get_template
from llm.checkpoint import Checkpoint, Sample, load_model, open_checkpoint, save_folder
from llm.checkpoint.folder import tokenizer_spec
from llm.config import COURSE_DEFAULTS, GenerationDefaults, ModelConfig
from llm.errors import DataError, OptionError
from llm.model import Decoder, init_weights
from llm.placement import resolve_devices
from llm.tokenizer import ByteTokenizer, Tokenizer, load_tiktoken
from llm.train import options as flags
from llm.train.adapter import check_flags, describe, save_trained, start_adapter
from llm.train.data import Batch, Batches, Ids
from llm.train.loop import Trainer, train
from llm.train.loss import Candidates
from llm.train.report import Report
from llm.train.vocabulary import SharedRows

INTERRUPTED = 130
TRAINABLE = ("folder", "state dict")
TOKENIZER = Path("checkpoints/causette/tokenizer.tiktoken")


@dataclass(frozen=True, slots=True)
class Start:
    """What a run begins with: a model on the CPU in float32, and how it is spoken to.

    Attributes:
        adapter: attached to the model, when it is what the run trains.
    """

    model: Decoder
    tokenizer: Tokenizer
    template: ChatTemplate
    defaults: GenerationDefaults
    adapter: Adapter | None = None


def start(options: argparse.Namespace) -> Start:
    """The checkpoint of --init, or a model from scratch in the flags' shape.

    Raises:
        OptionError: a shape flag beside --init, or a shape no model has.
        CheckpointError: no such checkpoint or tokenizer.
    """
    check_flags(options)
    if options.init is None:
        path = TOKENIZER if options.tokenizer is None else options.tokenizer
        tokenizer: Tokenizer = ByteTokenizer() if path == "bytes" else load_tiktoken(path)
        template = get_template("plain", COURSE_DEFAULTS.default_system)
        return Start(_new_model(options, tokenizer.vocab_size), tokenizer, template, COURSE_DEFAULTS)
    given = [name for name in (*flags.SHAPE, "tokenizer") if getattr(options, name) is not None]
    if given or options.untied:
        name = given[0].replace("_", "-") if given else "untied"
        raise OptionError(f"--{name}: --init brings shape and tokenizer, leave it out")
    checkpoint = open_checkpoint(options.init)
    if options.lora_rank is None:
        _check_can_be_saved(options, checkpoint)
    model = load_model(checkpoint, torch.device("cpu"), torch.float32).requires_grad_(True)
    adapter = start_adapter(options, checkpoint, model)
    return Start(model, checkpoint.tokenizer, checkpoint.template, checkpoint.defaults, adapter)


def _check_can_be_saved(options: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """Hours later is too late to learn that it cannot."""
    if checkpoint.template.name != "plain" or checkpoint.kind not in TRAINABLE:
        raise OptionError(
            f"--init {options.init}: training goes on from a {' or a '.join(TRAINABLE)} with the plain "
            f"template, not from a {checkpoint.kind} with {checkpoint.template.name}"
        )
    tokenizer_spec(checkpoint.tokenizer)


def _new_model(options: argparse.Namespace, vocab_size: int) -> Decoder:
    """Fresh weights; a bad shape is named by the flag's own error."""
    heads = _given(options.heads, flags.HEADS)
    width = _given(options.width, flags.WIDTH)
    try:
        config = ModelConfig(
            vocab_size=vocab_size,
            num_positions=_given(options.positions, flags.POSITIONS),
            num_layers=_given(options.layers, flags.LAYERS),
            num_heads=heads,
            num_kv_heads=_given(options.kv_heads, heads),
            width=width,
            ffn_width=_given(options.ffn, 4 * width),
            tied_head=not options.untied,
        )
    except ValueError as error:
        raise OptionError(str(error)) from None
    model = Decoder(config)
    init_weights(model, options.seed)
    return model


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def run(
    options: argparse.Namespace,
    begin: Start,
    batches: Batches,
    held: Sequence[Batch],
    seen: Ids,
    samples: Sequence[Sample],
    card: str,
) -> int:
    """Train with progress and save the servable folder.

    Args:
        held: batches to validate on, may be empty.
        seen: ids of the training data, in its order: they name the run and the ids that are learned.
        samples: conversations for the prompt proof.
        card: the model card.

    Returns:
        The exit status: 0, or 130 when a signal stopped the run.
    """
    config = flags.train_config(options, batches.steps_per_epoch)
    device = _device(options.device)
    work: Path = (
        options.work if options.work is not None else options.out.with_name(options.out.name + ".run")
    )
    model, shared = begin.model, _shared_rows(options, begin.model, seen)
    vocab_size = model.config.vocab_size
    candidates = Candidates(seen, vocab_size, config.negatives, config.seed) if config.negatives else None
    small = model if shared is None else shared.shrink(model)
    trainer = Trainer(
        small.to(device), config, candidates, shared, _name_run(options, seen) + describe(begin.adapter)
    )
    if options.resume:
        trainer.load(work / "training.pt")
    work.mkdir(parents=True, exist_ok=True)
    report = Report(work, config.last_step, trainer.step)
    learning = "" if begin.adapter is None else f", {begin.adapter.num_parameters():,} of them learn,"
    report.say(
        f"{model.num_parameters():,} parameters{learning} on {device}{', bfloat16' if trainer.bf16 else ''}; "
        f"{config.last_step:,} steps of {options.batch_size} rows, {batches.steps_per_epoch:,} per epoch"
    )
    finished = train(trainer, batches, held, work, report)
    trained = trainer.model if shared is None else shared.expand(trainer.model)
    if begin.adapter is not None:
        save_trained(options.out, trained, begin.adapter, samples, card)
    else:
        save_folder(options.out, trained, begin.tokenizer, begin.template.name, begin.defaults, samples, card)
    report.say(f"{options.out}: saved after step {trainer.step:,}; log, curve and training.pt are in {work}")
    if not finished:
        report.say("stopped by a signal: the same command with --resume goes on")
    return 0 if finished else INTERRUPTED


def _device(name: str) -> torch.device:
    devices = resolve_devices(name)
    if len(devices) != 1:
        raise OptionError(f"--device {name}: training uses one device")
    return devices[0]


def _name_run(options: argparse.Namespace, seen: Ids) -> str:
    """What a resumed run must have in common with the one it goes on from."""
    return hashlib.sha256(seen.tobytes() + f"{options.batch_size}/{options.seed}".encode()).hexdigest()[:16]


def _shared_rows(options: argparse.Namespace, model: Decoder, seen: Ids) -> SharedRows | None:
    """The small vocabulary of --share-unseen."""
    if options.share_unseen == 0:
        return None
    if options.init is not None or options.negatives:
        raise OptionError("--share-unseen is for models from scratch, without --init and --negatives")
    return SharedRows(seen, model.config.vocab_size, options.share_unseen)


def read_card(options: argparse.Namespace) -> str:
    """The model card: the file of --card, or a short one that names the data."""
    if options.card is not None:
        try:
            return str(options.card.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{options.card}: cannot read: {error.strerror}") from None
    names = "\n".join(f"- {Path(name).name}" for name in options.data)
    learning = f"Seed {options.seed}, learning rate {options.lr}."
    return f"# {options.out.name}\n\nTrained from:\n\n{names}\n\n{learning}\n"
