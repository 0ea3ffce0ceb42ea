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

from llm.adapt.adapter import Adapter
from llm.chat.template import ChatTemplate, get_template
from llm.checkpoint import Sample, load_model, open_checkpoint, save_folder
from llm.checkpoint.wording import write_wording
from llm.config import COURSE_DEFAULTS, GenerationDefaults, ModelConfig
from llm.errors import DataError, OptionError
from llm.model import Decoder, init_weights
from llm.placement import resolve_devices
from llm.tokenizer import ByteTokenizer, Tokenizer, load_tiktoken
from llm.train import options as flags
from llm.train.adapter import check_flags, describe, save_trained, start_adapter
from llm.train.batches import Batch, Batches
from llm.train.config_file import write_config
from llm.train.data import Ids
from llm.train.loop import Trainer, train
from llm.train.loss import Candidates
from llm.train.recompute import recompute_activations
from llm.train.report import Report
from llm.train.schedule import TrainConfig
from llm.train.shape import new_config, refuse_shape
from llm.train.vocabulary import SharedRows

INTERRUPTED = 130
RESOLVED = "training.json"
"""A run's flags, in the work folder and beside the weights."""
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
    """The checkpoint of --init, or a model from scratch in the shape of --like or of the flags.

    Raises:
        OptionError: a shape flag beside --init, or a shape no model has.
        CheckpointError: no such checkpoint or tokenizer, or one that cannot be saved again.
    """
    check_flags(options)
    source = options.like if options.init is None else options.init
    if source is None:
        path = TOKENIZER if options.tokenizer is None else options.tokenizer
        tokenizer: Tokenizer = ByteTokenizer() if path == "bytes" else load_tiktoken(path)
        template = get_template("plain", COURSE_DEFAULTS.default_system)
        config = new_config(options, tokenizer.vocab_size)
        return Start(_new_model(config, options.seed), tokenizer, template, COURSE_DEFAULTS)
    refuse_shape(options)
    checkpoint = open_checkpoint(source)
    if options.lora_rank is None:  # hours later is too late to learn that it cannot be saved
        write_wording(checkpoint.tokenizer, checkpoint.template, checkpoint.defaults)
    if options.init is None:
        model = _new_model(checkpoint.config, options.seed)
    else:
        model = load_model(checkpoint, torch.device("cpu"), torch.float32).requires_grad_(True)
    adapter = start_adapter(options, checkpoint, model)
    return Start(model, checkpoint.tokenizer, checkpoint.template, checkpoint.defaults, adapter)


def _new_model(config: ModelConfig, seed: int) -> Decoder:
    model = Decoder(config)
    init_weights(model, seed)
    return model


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
    if config.patience and not held:
        raise OptionError(f"--patience {config.patience} needs validation data, and there is none")
    trainer = _make_trainer(options, begin, config, seen)
    work = _work_folder(options)
    if options.resume:
        trainer.load(work / "training.pt")
    work.mkdir(parents=True, exist_ok=True)
    resolved = _resolved(trainer, work)
    write_config(work / RESOLVED, options, **resolved)
    report = Report(work, config.last_step, trainer.step, options.log_every, recent=trainer.recent)
    report.say(
        f"{_count(begin)} on {trainer.model.device}"
        f"{', bfloat16' if trainer.bf16 else ''}; {config.last_step:,} steps of "
        f"{flags.rows_per_step(options)} rows, {batches.steps_per_epoch:,} per epoch"
    )
    finished = train(trainer, batches, held, work, report)
    _save(options, begin, trainer, samples, card)
    write_config(options.out / RESOLVED, options, **resolved)
    report.say(f"{options.out}: {_saved(trainer)}; log, curve and training.pt are in {work}")
    if not finished:
        report.say("stopped by a signal: the same command with --resume goes on")
    return 0 if finished else INTERRUPTED


def _make_trainer(options: argparse.Namespace, begin: Start, config: TrainConfig, seen: Ids) -> Trainer:
    """A new run on its device, with the small vocabulary or the sampled columns that the flags ask for."""
    device = _device(options.device)
    vocab_size, shared = begin.model.config.vocab_size, _shared_rows(options, begin.model, seen)
    candidates = Candidates(seen, vocab_size, config.negatives, config.seed) if config.negatives else None
    model = begin.model if shared is None else shared.shrink(begin.model)
    if options.checkpoint_activations:
        recompute_activations(model)
    name = _name_run(options, seen) + describe(begin.adapter)
    return Trainer(model.to(device), config, candidates, shared, name)


def _count(begin: Start) -> str:
    learning = "" if begin.adapter is None else f", {begin.adapter.num_parameters():,} of them learn,"
    return f"{begin.model.num_parameters():,} parameters{learning}"


def _work_folder(options: argparse.Namespace) -> Path:
    work: Path | None = options.work
    return options.out.with_name(options.out.name + ".run") if work is None else work


def _resolved(trainer: Trainer, work: Path) -> dict[str, object]:
    """What flags came to that leave the choice to the data and the machine."""
    return {
        "steps": trainer.config.steps,
        "device": str(trainer.model.device),
        "precision": "bf16" if trainer.bf16 else "fp32",
        "work": work,
    }


def _save(
    options: argparse.Namespace, begin: Start, trainer: Trainer, samples: Sequence[Sample], card: str
) -> None:
    """The servable folder, of the best step if that is kept."""
    trainer.take_best()
    model = trainer.model if trainer.shared is None else trainer.shared.expand(trainer.model)
    if begin.adapter is not None:
        save_trained(options.out, model, begin.adapter, samples, card)
    else:
        save_folder(options.out, model, begin.tokenizer, begin.template, begin.defaults, samples, card)


def _saved(trainer: Trainer) -> str:
    best = trainer.best
    if best is None or not best.weights:
        return f"saved after step {trainer.step:,}"
    return f"saved as of step {best.step:,} of {trainer.step:,}, validation loss {best.loss:.4f}"


def _device(name: str) -> torch.device:
    devices = resolve_devices(name)
    if len(devices) != 1:
        raise OptionError(f"--device {name}: training uses one device")
    return devices[0]


def _name_run(options: argparse.Namespace, seen: Ids) -> str:
    """What a resumed run must have in common with the one it goes on from."""
    cut = [getattr(options, name, None) for name in ("pack", "window", "prompt_loss")]
    named = f"{flags.rows_per_step(options)}/{options.seed}/{cut}"
    return hashlib.sha256(seen.tobytes() + named.encode()).hexdigest()[:16]


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
