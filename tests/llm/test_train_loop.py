"""The loop learns, stops when told, and goes on as if it had never stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from llm.errors import CheckpointError
from llm.model import Decoder, init_weights
from llm.train.batches import Batch, ChatBatches, collate
from llm.train.data import Example
from llm.train.loop import Trainer, make_optimiser, train
from llm.train.loss import Candidates
from llm.train.recompute import recompute_activations
from llm.train.report import Report, draw_losses, read_log
from llm.train.schedule import TrainConfig, schedule
from llm.train.vocabulary import SharedRows
from tests.fakes import TINY

CONFIG = TrainConfig(steps=12, lr=3e-3, warmup=2, bf16=False, validate_every=5, save_every=0)
EXAMPLES = [
    Example(np.array([1, 2, 3 + n % 5, 4, 5, 3 + n % 5], dtype=np.int32), np.array([False] * 3 + [True] * 3))
    for n in range(20)
]
SEEN = np.concatenate([example.ids for example in EXAMPLES])


def new_trainer(config: TrainConfig = CONFIG, *, shared: bool = False, data: str = "a") -> Trainer:
    model = Decoder(TINY)
    init_weights(model, 1)
    candidates = Candidates(SEEN, 257, config.negatives, 1) if config.negatives else None
    rows = SharedRows(SEEN, 257, 8) if shared else None
    return Trainer(rows.shrink(model) if rows else model, config, candidates, rows, data)


def batches() -> ChatBatches:
    return ChatBatches(EXAMPLES, batch_size=8, seed=1)


def quiet(folder: Path, trainer: Trainer, every: int = 1) -> Report:
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, quiet=True)
        return Report(folder, trainer.config.steps, trainer.step, every, console, trainer.recent)


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def test_schedule_warms_up_and_comes_down() -> None:
    config = TrainConfig(steps=100, lr=1.0, warmup=10, lr_floor=0.1)
    rates = [schedule(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert schedule(config, 55) == pytest.approx(0.1 + 0.9 / 2)
    assert schedule(config, 100) == schedule(config, 1000) == pytest.approx(0.1)


def test_schedule_follows_the_minutes_when_they_are_further_along() -> None:
    config = TrainConfig(steps=1000, lr=1.0, warmup=1, lr_floor=0.0, max_minutes=10)
    assert schedule(config, 500, minutes=1) == schedule(config, 500, minutes=0)
    assert schedule(config, 100, minutes=5) == pytest.approx(0.5)
    assert schedule(config, 100, minutes=10) == pytest.approx(0.0)


def test_only_matrices_decay() -> None:
    model = Decoder(TINY)
    decay, keep = make_optimiser(model, CONFIG).param_groups
    assert decay["weight_decay"] == CONFIG.weight_decay and keep["weight_decay"] == 0
    assert {p.ndim for p in decay["params"]} == {2} and {p.ndim for p in keep["params"]} == {1}
    assert len(decay["params"]) + len(keep["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("variant", [{}, {"negatives": 20}, {"shared": True}])
def test_it_learns_and_the_log_says_so(tmp_path: Path, variant: dict[str, int]) -> None:
    config = replace(CONFIG, steps=60, lr=1e-2, negatives=variant.get("negatives", 0))
    trainer = new_trainer(config, shared="shared" in variant)
    held = [collate(EXAMPLES[:5])]
    before = trainer.validate(held)
    assert train(trainer, batches(), held, tmp_path, quiet(tmp_path, trainer))
    after = trainer.validate(held)
    assert before == pytest.approx(np.log(257), abs=0.2), "the whole vocabulary, whatever is sampled"
    assert after < 1.0
    log = read_log(tmp_path / "log.jsonl")
    assert [row["step"] for row in log if "loss" in row] == list(range(1, 61))
    assert log[-1] == {"step": 60, "validation_loss": pytest.approx(after, abs=1e-4)}
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("variant", [{}, {"negatives": 20}, {"shared": True}])
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path, variant: dict[str, int]) -> None:
    config = replace(CONFIG, negatives=variant.get("negatives", 0), full_steps=2)
    shared = "shared" in variant
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    straight = new_trainer(config, shared=shared)
    train(straight, batches(), [], whole, quiet(whole, straight))

    first = new_trainer(config, shared=shared)
    report = quiet(parts, first)
    for step in range(7):
        report.step(step + 1, *first.update(batches()[step]), 0, 0)
        if step == 4:
            first.save(parts / "training.pt")  # steps 6 and 7 are lost with the process and done again
    second = new_trainer(config, shared=shared)
    second.load(parts / "training.pt")
    assert second.step == 5
    train(second, batches(), [], parts, quiet(parts, second))

    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(second), strict=True))
    curves = [[(r["step"], r["loss"]) for r in read_log(f / "log.jsonl")] for f in (whole, parts)]
    assert curves[0] == curves[1]


def test_the_last_steps_score_the_whole_vocabulary() -> None:
    trainer = new_trainer(replace(CONFIG, steps=4, negatives=20, full_steps=2))
    for step in range(4):
        batch = batches()[step]
        full = trainer.validate([batch])
        loss, _ = trainer.update(batch)
        assert (abs(loss - full) < 1e-5) == (step >= 2)


class Interrupting:
    """Batches that bring a signal along at one step."""

    steps_per_epoch = 100

    def __init__(self, step: int, number: signal.Signals) -> None:
        self.step, self.number = step, number

    def __getitem__(self, step: int) -> Batch:
        if step == self.step:
            os.kill(os.getpid(), self.number)
        return batches()[step]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_everything_saved(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    trainer = new_trainer()
    finished = train(trainer, Interrupting(3, number), [], tmp_path, quiet(tmp_path, trainer))
    assert not finished and trainer.step == 4, "the step in progress is finished first"
    assert signal.getsignal(number) is before
    again = new_trainer()
    again.load(tmp_path / "training.pt")
    assert again.step == 4
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("num_rows", [1, 3, 5, 8])
@pytest.mark.parametrize("negatives", [0, 20])
def test_parts_of_a_batch_update_as_the_whole_does(num_rows: int, negatives: int) -> None:
    """Also where parts differ in length and in targets; a part's gradients weigh as its targets do."""
    lengths = [3, 9, 4, 4, 12, 5, 2, 7]
    random = np.random.default_rng(1)
    batch = collate(
        [Example(random.choice(SEEN, n), np.arange(n) % 3 > 0) for n in lengths], prompt_weight=0.3
    )
    whole = new_trainer(replace(CONFIG, negatives=negatives))
    parts = new_trainer(replace(CONFIG, negatives=negatives, num_rows=num_rows))
    for trainer in (whole, parts):
        trainer.model.double()
        for _ in range(3):
            loss, _ = trainer.update(batch)
            trainer.recent.append(loss)
    assert parts.recent == pytest.approx(whole.recent, rel=1e-12)
    for one, two in zip(weights(parts), weights(whole), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-10)


def test_recomputed_activations_give_the_same_gradients() -> None:
    kept, again = new_trainer(), new_trainer()
    names = list(again.model.state_dict())
    recompute_activations(again.model)
    seen: list[int] = []
    again.model.blocks[0].attention.register_forward_hook(lambda *_: seen.append(1))
    for trainer in (kept, again):
        trainer.update(batches()[0])
    assert len(seen) == 2, "forward, and once more on the way back"
    assert all(torch.equal(a, b) for a, b in zip(weights(kept), weights(again), strict=True))
    assert list(again.model.state_dict()) == names


class Scripted(Trainer):
    """Validates to what it is told."""

    losses: list[float]

    def validate(self, batches: Sequence[Batch]) -> float:
        return self.losses[self.step - 1]


def scripted(losses: list[float], **changes: Any) -> Scripted:
    model = Decoder(TINY)
    init_weights(model, 1)
    trainer = Scripted(model, replace(CONFIG, steps=len(losses), validate_every=1, **changes))
    trainer.losses = losses
    return trainer


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_best_step_is_kept(tmp_path: Path, keep: str) -> None:
    trainer, until_best = scripted([3.0, 1.0, 2.0, 1.0], keep=keep), scripted([9.0] * 4)
    train(trainer, batches(), [collate(EXAMPLES[:1])], tmp_path, quiet(tmp_path, trainer))
    for step in range(2):
        until_best.update(batches()[step])
    last = weights(trainer)
    trainer.take_best()
    assert trainer.best is not None and (trainer.best.loss, trainer.best.step) == (1.0, 2)
    expected = weights(until_best) if keep == "best" else last
    assert all(torch.equal(a, b) for a, b in zip(weights(trainer), expected, strict=True))


def test_patience_ends_the_run(tmp_path: Path) -> None:
    losses = [3.0, 2.0, 2.0, 2.5, 1.0, 1.5, 1.2, 1.0, 0.1]
    trainer = scripted(losses, patience=3)
    assert train(trainer, batches(), [collate(EXAMPLES[:1])], tmp_path, quiet(tmp_path, trainer))
    assert trainer.step == 8, "two misses, a better one, three misses"
    endless = scripted(losses)
    train(endless, batches(), [collate(EXAMPLES[:1])], tmp_path, quiet(tmp_path, endless))
    assert endless.step == 9


def test_a_resumed_run_remembers_its_best_and_its_patience(tmp_path: Path) -> None:
    losses = [3.0, 1.0, 2.0, 2.5, 2.0, 0.5]
    first, held = scripted(losses, patience=3, keep="best"), [collate(EXAMPLES[:1])]
    report = quiet(tmp_path, first)
    for step in range(3):
        report.step(step + 1, *first.update(batches()[step]), 0, 0)
        first.judge(held)
    first.save(tmp_path / "training.pt")
    second = scripted(losses, patience=3, keep="best")
    second.load(tmp_path / "training.pt")
    assert train(second, batches(), held, tmp_path, quiet(tmp_path, second))
    assert second.step == 5 and second.best is not None and second.best.step == 2
    assert first.best is not None
    for name, tensor in first.best.weights.items():
        assert torch.equal(second.best.weights[name], tensor)


def test_a_line_of_the_log_averages_over_a_break(tmp_path: Path) -> None:
    """Lines every 5 steps, saved after 7: the line of step 10 knows the losses of steps 6 and 7."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    straight, first, second = new_trainer(), new_trainer(), new_trainer()
    train(straight, batches(), [], whole, quiet(whole, straight, every=5))
    report = quiet(parts, first, every=5)
    for step in range(7):
        report.step(step + 1, *first.update(batches()[step]), 0, 0)
    first.save(parts / "training.pt")
    second.load(parts / "training.pt")
    train(second, batches(), [], parts, quiet(parts, second, every=5))
    curves = [[(r["step"], r["loss"]) for r in read_log(f / "log.jsonl")] for f in (whole, parts)]
    assert curves[0] == curves[1] and [step for step, _ in curves[0]] == [5, 10, 12]


def test_minutes_end_the_run(tmp_path: Path) -> None:
    trainer = new_trainer(replace(CONFIG, steps=10**9, max_minutes=1e-9))
    assert train(trainer, batches(), [], tmp_path, quiet(tmp_path, trainer))
    assert trainer.step == 1


def test_a_run_may_stop_early_on_its_schedule(tmp_path: Path) -> None:
    """The weights after 3 of 20 steps are the same whether the run was to go on or not."""
    early, whole = (
        new_trainer(replace(CONFIG, steps=20, stop_after=3)),
        new_trainer(replace(CONFIG, steps=20)),
    )
    assert train(early, batches(), [], tmp_path, quiet(tmp_path, early))
    assert early.step == 3
    for step in range(3):
        whole.update(batches()[step])
    assert all(
        torch.equal(a, b) for a, b in zip(early.model.parameters(), whole.model.parameters(), strict=True)
    )


def test_what_cannot_be_resumed_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    new_trainer(data="a").save(path)
    for trainer, message in (
        (new_trainer(data="b"), "other data"),
        (new_trainer(shared=True), "size mismatch|Error"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            trainer.load(path)
        assert "\n" not in str(caught.value)
    for content in (b"", b"not a zip", json.dumps({}).encode()):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot resume"):
            new_trainer().load(path)
    with pytest.raises(CheckpointError, match="cannot resume"):
        new_trainer().load(tmp_path / "none.pt")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("owned",)


def test_a_hostile_training_file_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, tmp_path / "training.pt")
    with pytest.raises(CheckpointError, match="cannot resume"):
        new_trainer().load(tmp_path / "training.pt")
    assert not (tmp_path / "owned").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    trainer = new_trainer()
    with torch.no_grad():
        trainer.model.norm.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="the loss is nan at step 1; try a lower --lr"):
        train(trainer, batches(), [], tmp_path, quiet(tmp_path, trainer))
    saved = new_trainer()
    saved.load(tmp_path / "training.pt")
    assert saved.step == 0, "what is saved is from before the step that failed"


def test_plain_lines_without_a_terminal_and_a_bar_with_one(tmp_path: Path) -> None:
    for terminal in (False, True):
        path = tmp_path / "out.txt"
        with (
            path.open("w") as file,
            Report(
                tmp_path, 4, every=2, console=Console(file=file, force_terminal=terminal, width=100)
            ) as report,
        ):
            for step in range(1, 5):
                report.step(step, 2.0, 100, 1e-3, 61)
        assert "loss 2.0000" in path.read_text() and "00:01:01 left" in path.read_text()
        assert terminal or path.read_text().startswith("step 2/4  loss 2.0000")


def test_a_log_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    draw_losses(log, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_log(log) == [{"step": 1, "loss": 2.0}]
