"""`causerie quantize`: a smaller folder of ours, its matrices in groups of 8 or 4 bits, served as stored.

    causerie quantize checkpoints/mine --out checkpoints/int8 --format int8
    causerie quantize checkpoints/mine --out checkpoints/int4 --format int4 --rounding gptq --data chat.jsonl

    format   blocks' matrices                    embedding and head    norms, biases, positions
    int8     q8_0                                q8_0                  as they are
    int4     q4_1; stored 4-bit groups stay      q8_0                  as they are

These are the native runner's own formats: the folder answers as the original under --quantization int8 or
int4 does. Rounding to 4 bits: `nearest` takes a group's least and greatest weight as its ends, `fitted` the
line with the least squared error, `gptq` the least error of the layer's output, which takes text to learn
from. A matrix whose inputs are no multiple of 32 stays in 16 bits. Refuses to know how a model is served.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args

import torch
from rich.console import Console
from rich.progress import track

from llm.adapt.gptq import round_blocks
from llm.adapt.quant import GROUP, QuantTensor
from llm.checkpoint import Checkpoint, load_model, locate_checkpoint, open_checkpoint
from llm.checkpoint.folder import save_weights
from llm.checkpoint.record import Weight, count_types, expected_shapes, some
from llm.checkpoint.wording import write_wording
from llm.errors import CheckpointError, OptionError
from llm.runner.native.weights import as_served, is_matrix, is_table
from llm.train.data import encode_file
from llm.train.options import run_command

ROOT = Path(__file__).resolve().parents[2]
Format = Literal["int8", "int4"]
Rounding = Literal["nearest", "fitted", "gptq"]
_Step = TypeVar("_Step")
MAX_WINDOW = 512
"""Tokens of a text that are read together, at most; attention's memory grows with their square."""
MB = 1e6
"""As disks count."""


def pack_weights(
    checkpoint: Checkpoint,
    format: Format,
    rounding: Rounding = "fitted",
    rounded: Mapping[str, QuantTensor] | None = None,
) -> Iterator[tuple[str, Weight]]:
    """Every parameter as the folder keeps it; copies.

    Args:
        rounded: matrices that are 4 bits already.

    Raises:
        CheckpointError: weights that the format cannot hold.
    """
    rounded = rounded or {}
    for name, weight in checkpoint.weights():
        if name in rounded:
            yield name, rounded[name]
        elif not is_matrix(name, weight.shape):
            yield name, weight.dequantize() if isinstance(weight, QuantTensor) else weight.clone()
        elif weight.shape[1] % GROUP:
            assert not isinstance(weight, QuantTensor), name
            yield name, _half(name, weight)
        else:
            packed = as_served(name, weight, format, "nearest" if rounding == "nearest" else "fitted")
            assert isinstance(packed, QuantTensor), name
            yield name, QuantTensor(packed.format, packed.shape, packed.data.clone())


def _half(name: str, weight: torch.Tensor) -> torch.Tensor:
    """What cannot be packed, in 16 bits all the same."""
    half = weight.clone() if weight.dtype == torch.bfloat16 else weight.to(torch.float16)
    if not bool(half.isfinite().all()):
        raise CheckpointError(f"{name}: weights too large for float16")
    return half


def calibrate(checkpoint: Checkpoint, data: Sequence[Path], num_tokens: int) -> list[list[int]]:
    """Token ids for gptq to learn from, `num_tokens` or all there are, in windows.

    Args:
        data: chats when a name ends with .jsonl, else plain text; none for the checkpoint's own samples.

    Raises:
        DataError: a file that cannot be used.
        OptionError: there is nothing to learn from.
    """
    texts = [ids for path in data for ids in encode_file(path, checkpoint.tokenizer, checkpoint.template)]
    if not data:
        texts = [sample.ids for sample in checkpoint.samples]
    longest = min(checkpoint.config.num_positions, MAX_WINDOW)
    windows, left = [], num_tokens
    for ids in texts:
        for start in range(0, min(len(ids), left), longest):
            windows.append(list(ids[start : start + min(longest, left)]))
            left -= len(windows[-1])
    if not windows:
        raise OptionError("--rounding gptq needs --data: this checkpoint carries no samples to learn from")
    return windows


def round_by_inputs(checkpoint: Checkpoint, windows: Sequence[Sequence[int]]) -> dict[str, QuantTensor]:
    """The blocks' matrices by gptq, but those that are stored in 4 bits: they are what there is to be had."""
    wanted = [
        name
        for name, weight in checkpoint.weights()
        if is_matrix(name, weight.shape) and not is_table(name) and not weight.shape[1] % GROUP
        if not (isinstance(weight, QuantTensor) and weight.format in ("q4_0", "q4_1"))
    ]
    if not wanted:
        return {}
    model = load_model(checkpoint, torch.device("cpu"), torch.float32)
    try:
        return dict(_shown("rounding", round_blocks(model, windows, wanted), len(wanted)))
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None


def _shown(what: str, steps: Iterable[_Step], total: int) -> Iterable[_Step]:
    """The steps, with a bar on a terminal."""
    console = Console(stderr=True)
    return track(steps, what, total, console=console, transient=True, disable=not console.is_terminal)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; exit status 2 for an option, a text or a checkpoint that cannot be used."""
    parser = argparse.ArgumentParser(description="Write a smaller checkpoint: 8 or 4 bits a weight.")
    add = parser.add_argument
    add("checkpoint", help="file, folder or name of a pulled one")
    add("--out", type=Path, required=True, help="servable folder to write")
    add("--format", choices=get_args(Format), required=True, help="bits of a weight in the blocks")
    add("--rounding", choices=get_args(Rounding), help="to 4 bits (default: fitted)")
    add("--data", nargs="+", type=Path, default=[], help="chat .jsonl or text, for gptq to learn from")
    add("--tokens", type=int, default=8192, help="of the data, at most (default: %(default)s)")
    return run_command(parser, _quantize, argv)


def _quantize(options: argparse.Namespace) -> int:
    if options.rounding is not None and options.format != "int4":
        raise OptionError(f"--rounding {options.rounding} is for --format int4, 8 bits are nearest")
    rounding: Rounding = options.rounding or "fitted"
    if options.data and rounding != "gptq":
        raise OptionError("--data is for --rounding gptq: the others learn from no text")
    if options.tokens < 1:
        raise OptionError(f"--tokens must be at least 1, got {options.tokens}")
    path = locate_checkpoint(Path(options.checkpoint), ROOT)
    if options.out.resolve() in (path.resolve(), path.resolve().parent):
        raise OptionError(f"--out {options.out} is where the original is: name another folder")
    checkpoint = open_checkpoint(path)
    write_wording(checkpoint.tokenizer, checkpoint.template, checkpoint.defaults)  # refused now or never
    how, rounded = f"{options.format}, rounded to nearest", dict[str, QuantTensor]()
    if options.format == "int4":
        how = f"int4, {rounding}"
    if rounding == "gptq":
        windows = calibrate(checkpoint, options.data, options.tokens)
        source = some(file.name for file in options.data) if options.data else "the checkpoint's samples"
        how += f" on {sum(map(len, windows)):,} tokens of {source}"
        rounded = round_by_inputs(checkpoint, windows)
    steps = pack_weights(checkpoint, options.format, rounding, rounded)
    weights = dict(_shown("packing", steps, len(expected_shapes(checkpoint.config))))
    report = describe(checkpoint, weights, how)
    save_weights(options.out, checkpoint, weights, _card(options.out.name, checkpoint, report))
    print("\n".join(f"{name:<12}{text}" for name, text in report.items()))
    print(f"{'saved':<12}{options.out}")
    return 0


def describe(checkpoint: Checkpoint, weights: Mapping[str, Weight], how: str) -> dict[str, str]:
    """What was made of what, one fact per name."""
    types = count_types((_type(weight), weight.numel()) for weight in weights.values())
    total, before = sum(types.values()), stored_bytes(checkpoint.path)
    after = sum(weight.nbytes for weight in weights.values())
    shares = ", ".join(f"{name} {number / total:.1%}" for name, number in types.items())
    facts = {
        "from": f"{checkpoint.name} ({checkpoint.kind}, {checkpoint.digest}): {before / MB:,.1f} MB, "
        f"stored as {', '.join(checkpoint.stored)}",
        "how": how,
        "to": f"{after / MB:,.1f} MB, {after / before:.0%} of it: {shares}",
    }
    floats = (name for name, weight in weights.items() if isinstance(weight, torch.Tensor))
    if odd := [name for name in floats if is_matrix(name, weights[name].shape)]:
        facts["note"] = f"no multiple of {GROUP} inputs, so 16 bits a weight: {some(odd)}"
    return facts


def stored_bytes(path: Path) -> int:
    """Of a checkpoint's weights on disk."""
    if path.is_file():
        return path.stat().st_size
    ends = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
    return sum(file.stat().st_size for file in path.iterdir() if file.name.endswith(ends))


def _type(weight: Weight) -> str:
    return weight.format if isinstance(weight, QuantTensor) else str(weight.dtype).removeprefix("torch.")


def _card(name: str, checkpoint: Checkpoint, report: Mapping[str, str]) -> str:
    """The model card."""
    facts = "\n".join(f"- {fact}: {text}" for fact, text in report.items())
    original = f"--against-checkpoint {checkpoint.name}"
    return (
        f"# {name}\n\n{checkpoint.name} with smaller weights, written by `causerie quantize`.\n\n{facts}\n\n"
        "Data, licence and evaluation are the original's. What the rounding costs:\n\n"
        f"    causerie quality --checkpoint {name} --quantization auto {original}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
