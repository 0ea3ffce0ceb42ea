"""What a run shows while it runs and leaves behind: progress, `log.jsonl`, `loss.png`.

On a terminal a bar, elsewhere a plain line every `every` steps. The log is appended to, so a resumed run
continues its curve. Refuses to know models and data.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

REDRAW_SECONDS = 10.0
"""A picture takes tenths of a second, a validation of a small model less."""


class Report:
    """One run's progress.

    Args:
        folder: exists; receives log.jsonl and loss.png.
        total: steps of the whole run.
        start: steps done before (resume).
        every: steps between two log lines.
        console: None for stdout.
        recent: the trainer's losses since the last line, kept here: a resumed run brings some along.
    """

    def __init__(
        self,
        folder: Path,
        total: int,
        start: int = 0,
        every: int = 20,
        console: Console | None = None,
        recent: list[float] | None = None,
    ) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.log = folder / "log.jsonl"
        self.image = folder / "loss.png"
        self.total, self.every = total, every
        if start == 0:
            self.log.unlink(missing_ok=True)
        else:
            self._forget_after(start)
        self.progress: Progress | None = None
        if self.console.is_terminal:
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[status]}"),
            )
            self.progress = Progress(*columns, console=self.console)
            self._task = self.progress.add_task("train", total=total, completed=start, status="")
        self._losses = [] if recent is None else recent
        self._num_tokens = 0
        self._since = self._drawn = time.monotonic()

    def __enter__(self) -> Self:
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.stop()
        draw_losses(self.log, self.image)

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, markup=False)

    def step(self, step: int, loss: float, num_tokens: int, lr: float, seconds_left: float) -> None:
        """After optimiser step number `step` (from 1): its loss and the tokens it read, padding excluded."""
        self._losses.append(loss)
        self._num_tokens += num_tokens
        if step % self.every and step != self.total:
            return
        mean = sum(self._losses) / len(self._losses)
        rate = self._num_tokens / max(time.monotonic() - self._since, 1e-9)
        self._write({"step": step, "loss": round(mean, 5), "lr": lr, "tokens_per_second": round(rate)})
        left = time.strftime("%H:%M:%S", time.gmtime(seconds_left))
        status = f"loss {mean:.4f}  {rate:,.0f} tokens/s  {left} left"
        if self.progress is not None:
            self.progress.update(self._task, completed=step, status=status)
        else:
            self.say(f"step {step}/{self.total}  {status}")
        self._losses.clear()
        self._num_tokens, self._since = 0, time.monotonic()

    def validation(self, step: int, loss: float) -> None:
        """The loss on data the model does not learn from."""
        self._write({"step": step, "validation_loss": round(loss, 5)})
        self.say(f"step {step}/{self.total}  validation loss {loss:.4f}")
        if time.monotonic() - self._drawn > REDRAW_SECONDS:
            draw_losses(self.log, self.image)
            self._drawn = time.monotonic()

    def _write(self, row: dict[str, Any]) -> None:
        """A line, on the disk before the training.pt of its step is."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _forget_after(self, start: int) -> None:
        """Drop lines of steps that will be done again."""
        rows = [row for row in read_log(self.log) if row["step"] <= start]
        part = self.log.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(part, self.log)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a log, none when there is no file; a last line cut short by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def draw_losses(log: Path, image: Path) -> None:
    """The loss curve, training and validation, as a PNG; nothing without log lines."""
    rows = read_log(log)
    if not rows:
        return
    from matplotlib.backends.backend_agg import (
        FigureCanvasAgg,
    )  # half a second of import, only for a run's picture
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, label in (("loss", "training"), ("validation_loss", "validation")):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure).print_png(image)  # type: ignore[no-untyped-call]
