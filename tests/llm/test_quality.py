"""What a format costs: the figures against loops in numpy, the text that is read, and the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.batch import Batch
from llm.chat.template import PlainTemplate
from llm.checkpoint import Checkpoint, open_checkpoint, save_folder
from llm.config import COURSE_DEFAULTS, EngineConfig
from llm.errors import DataError, OptionError, StepFailed
from llm.kv.concat import NoCache
from llm.model import Decoder
from llm.quality import (
    ROWS_AT_ONCE,
    Quality,
    Window,
    compare,
    compare_windows,
    cut,
    main,
    parse_formats,
    read_windows,
)
from llm.runner import Runner, StepOutput
from llm.runner.eager import EagerRunner
from llm.tokenizer import ByteTokenizer
from tests.fakes import tiny_model

ROOT = Path(__file__).parent.parent.parent
POSITIONS = 3 * ROWS_AT_ONCE
IDS = torch.randint(256, (POSITIONS + 1,), generator=torch.Generator().manual_seed(1)).tolist()


def model(noise: float = 0.0) -> Decoder:
    """A tiny model in float64, or one beside it."""
    made = tiny_model(dtype=torch.float64, num_positions=POSITIONS)
    with torch.no_grad():
        for seed, parameter in enumerate(made.parameters()):
            generator = torch.Generator().manual_seed(seed)
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made


def runner(of: Decoder) -> EagerRunner:
    return EagerRunner(of, EngineConfig(POSITIONS, max_num_seqs=1, max_num_batched_tokens=ROWS_AT_ONCE))


def by_hand(p_model: Decoder, q_model: Decoder, windows: list[Window], num_ids: int = 257) -> Quality:
    """The slow twin: whole windows without a cache, id by id."""
    divergences, same, expected, found = [], [], [], []
    for window in windows:
        ids = torch.tensor([list(window.ids[:-1])])
        places = torch.arange(ids.shape[1])[None]
        with torch.no_grad():
            p_rows, q_rows = (m.logits(m(ids, places, NoCache()))[0].numpy() for m in (p_model, q_model))
        for position in range(window.first, len(window.ids) - 1):
            p, q = (np.exp(rows[position, :num_ids]) for rows in (p_rows, q_rows))
            p, q = p / p.sum(), q / q.sum()
            divergences.append(sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True)))
            same.append(int(p.argmax()) == int(q.argmax()))
            expected.append(p[window.ids[position + 1]])
            found.append(q[window.ids[position + 1]])
    perplexities = [math.exp(-sum(map(math.log, column)) / len(column)) for column in (expected, found)]
    mean, p99 = sum(divergences) / len(divergences), float(np.quantile(divergences, 0.99))
    top1 = sum(same) / len(same)
    return Quality(len(divergences), perplexities[0], perplexities[1], mean, p99, max(divergences), top1)


def assert_equal(found: Quality, expected: Quality) -> None:
    for name in Quality.__slots__:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-8, abs=1e-12), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_is_no_distance_from_itself(dtype: torch.dtype) -> None:
    one = tiny_model(num_positions=POSITIONS, dtype=dtype)
    for other in (runner(one), runner(tiny_model(num_positions=POSITIONS, dtype=dtype))):
        quality = compare(runner(one), other, IDS, POSITIONS)
        assert (quality.mean_kl, quality.p99_kl, quality.max_kl, quality.top1) == (0.0, 0.0, 0.0, 1.0)
        assert quality.perplexity == quality.reference_perplexity > 1.0
    same = runner(one)
    assert compare(same, same, IDS, POSITIONS).max_kl == 0.0, "one runner may be both"


@pytest.mark.parametrize("window", [POSITIONS, ROWS_AT_ONCE + 1, 40, 1])
def test_the_figures_are_those_of_a_loop(window: int) -> None:
    one, other = model(), model(noise=0.05)
    ids = IDS if window > 1 else IDS[:20]
    quality = compare(runner(one), runner(other), ids, window)
    assert quality.num_positions == len(ids) - 1
    assert 0.0 < quality.mean_kl < quality.p99_kl < quality.max_kl
    assert 0.0 < quality.top1 < 1.0
    assert_equal(quality, by_hand(one, other, cut(ids, window)))
    assert quality != compare(runner(other), runner(one), ids, window), "KL is not symmetric"


def test_positions_before_the_first_are_seen_and_do_not_count() -> None:
    one, other = model(), model(noise=0.05)
    windows = [Window(IDS[:150], first=70), Window(IDS[100:120], first=18), Window(IDS[:2])]
    quality = compare_windows(runner(one), runner(other), windows)
    assert quality.num_positions == sum(window.num_positions for window in windows) == 79 + 1 + 1
    assert_equal(quality, by_hand(one, other, windows))


def test_ids_that_are_never_drawn_count_for_nothing() -> None:
    one, other = model(), model(noise=0.05)
    ids = [token % 100 for token in IDS]
    quality = compare(runner(one), runner(other), ids, POSITIONS, vocab_size=100)
    assert_equal(quality, by_hand(one, other, cut(ids, POSITIONS), 100))
    padded = model(noise=0.0)
    with torch.no_grad():
        padded.tokens.weight[100:] *= 3.0
    alike = compare(runner(one), runner(padded), ids, POSITIONS, vocab_size=100)
    assert alike.max_kl < 1e-12 and alike.top1 == 1.0
    assert compare(runner(one), runner(padded), ids, POSITIONS).mean_kl > 0.1


class Recycler:
    """A runner that writes its logits where another's were."""

    def __init__(self, inner: Runner, buffer: torch.Tensor) -> None:
        self.inner, self.device, self.about, self.buffer = inner, inner.device, inner.about, buffer

    def run(self, batch: Batch) -> StepOutput:
        output = self.inner.run(batch)
        rows = self.buffer[: len(output.logits)]
        return StepOutput(rows.copy_(output.logits), output.hidden)


def test_logits_that_are_overwritten_were_read_before() -> None:
    one, other = model(), model(noise=0.05)
    buffer = torch.zeros(ROWS_AT_ONCE, 257, dtype=torch.float64)
    quality = compare(Recycler(runner(one), buffer), Recycler(runner(other), buffer), IDS, POSITIONS)
    assert quality == compare(runner(one), runner(other), IDS, POSITIONS)


def test_logits_that_are_no_numbers_are_refused() -> None:
    broken = model()
    with torch.no_grad():
        broken.tokens.weight[IDS[100]] = torch.inf
    for pair in ((model(), broken), (broken, model())):
        with pytest.raises(StepFailed, match="logits that are not finite"):
            compare(runner(pair[0]), runner(pair[1]), IDS, POSITIONS)


def test_a_hopeless_model_has_a_perplexity_that_is_a_number() -> None:
    sure = model()
    with torch.no_grad():
        sure.tokens.weight.mul_(1e6)
    quality = compare(runner(sure), runner(sure), IDS, POSITIONS)
    assert quality.perplexity == math.exp(700.0)
    assert json.loads(json.dumps(quality.perplexity)) == quality.perplexity


@given(st.integers(0, 40), st.integers(1, 12), st.integers(0, 45))
def test_windows_predict_each_id_once(num_ids: int, window: int, first: int) -> None:
    ids = list(range(num_ids))
    windows = cut(ids, window, first)
    predicted = [token for w in windows for token in w.ids[w.first + 1 :]]
    assert predicted == ids[first + 1 :]
    assert all(1 <= w.num_positions <= len(w.ids) - 1 <= window for w in windows)
    assert all(w.ids == ids[w.ids[0] : w.ids[-1] + 1] and w.ids[0] % window == 0 for w in windows)


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Checkpoint:
    return open_checkpoint(tiny_folder)


def write_chats(path: Path, *chats: list[str]) -> Path:
    """Conversations of alternating user and assistant."""
    lines = [
        {"messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(chat)]}
        for chat in chats
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_plain_text_is_cut_where_the_model_ends(tiny: Checkpoint, tmp_path: Path) -> None:
    text = "".join(map(chr, range(33, 127))) * 10
    (tmp_path / "text.md").write_text(text)
    ids = list(text.encode())
    windows = read_windows(tmp_path / "text.md", tiny, 512)
    assert windows == [Window(ids[:257]), Window(ids[256:513])]
    assert read_windows(tmp_path / "text.md", tiny, 300)[1] == Window(ids[256:301])
    assert sum(w.num_positions for w in read_windows(tmp_path / "text.md", tiny, 5000)) == len(ids) - 1


class MarkedBytes(ByteTokenizer):
    """Every sequence begins with id 256."""

    begin_of_text: int | None = 256


def test_a_plain_text_begins_as_every_sequence_does(tiny: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "ab.txt").write_text("ab")
    marked = replace(tiny, tokenizer=MarkedBytes())
    assert read_windows(tmp_path / "ab.txt", marked, 9) == [Window([256, *b"ab"])]


def test_conversations_are_read_alone_and_what_they_share_counts_once(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    path = write_chats(tmp_path / "c.jsonl", ["one", "two"], ["one", "2"], ["one", "2"], ["a", "b", "c", "d"])
    texts = ["User: one\nAssistant: two\n", "User: one\nAssistant: 2\n", "User: a\nAssistant: b\nUser: c\n"]
    windows = read_windows(path, tiny, 10_000)
    assert [bytes(w.ids).decode() for w in windows] == [*texts[:2], texts[2] + "Assistant: d\n"]
    assert [w.first for w in windows] == [0, len("User: one\nAssistant: "), len("User: ")]
    for num_positions in range(1, sum(w.num_positions for w in windows)):
        part = read_windows(path, tiny, num_positions)
        assert sum(w.num_positions for w in part) == num_positions
        assert [w.first for w in part] == [w.first for w in windows][: len(part)]


def test_without_a_text_the_questions_of_the_test_are_read(tiny: Checkpoint) -> None:
    windows = read_windows(None, tiny, 3000)
    assert sum(w.num_positions for w in windows) == 3000
    assert windows == read_windows(None, tiny, 3000), "always the same"
    lines = bytes(windows[0].ids).decode().splitlines()
    assert lines[-1].startswith("Assistant: ") and lines[-2].startswith("User: ")
    test = (ROOT / "checkpoints/data/test.jsonl").read_text()
    questions = {json.loads(line).get("question") for line in test.splitlines()}
    assert lines[-2].removeprefix("User: ") in questions


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = main([*argv, "--threads", "1"])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose weights are spread as trained ones are."""
    folder = tmp_path_factory.mktemp("checkpoints") / "wide"
    made = tiny_model(num_positions=64, scale=4.0, width=64, ffn_width=96)
    save_folder(folder, made, ByteTokenizer(), PlainTemplate.name, COURSE_DEFAULTS, [], "#")
    return folder


def test_the_command_ends_with_a_line_of_json(
    tmp_path: Path, wide_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--checkpoint", str(wide_folder), "--quantization", "none, int8,int4,int8", "--positions", "100"]
    status, out, _ = run(capsys, *argv, "--json", str(tmp_path / "new" / "quality.json"))
    assert status == 0
    lines = out.splitlines()
    found = json.loads(lines[-1])
    assert (tmp_path / "new" / "quality.json").read_text() == lines[-1] + "\n"
    formats = found["formats"]
    assert list(formats) == ["none", "int8", "int4"]
    assert [line.split()[0] for line in lines[-5:-1]] == ["format", *formats]
    assert all(row["num_positions"] == 100 for row in formats.values())
    assert formats["none"]["max_kl"] < 1e-6 < formats["int8"]["mean_kl"] < formats["int4"]["mean_kl"] / 10
    assert formats["none"]["top1"] == 1.0
    assert all(row["runner"].startswith("native runner") for row in formats.values())
    assert "KV in float16" in formats["int8"]["runner"]
    assert formats["none"]["weights_mb"] > 2 * formats["int8"]["weights_mb"]
    assert found["reference"] == "eager" and found["text"] == "checkpoints/data"


def test_the_reference_may_be_native(wide_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--reference", "native", "--kv-cache-dtype", "float32", "--quantization", "none,int8"]
    status, out, _ = run(capsys, "--checkpoint", str(wide_folder), "--positions", "70", *argv)
    assert status == 0
    none, int8 = json.loads(out.splitlines()[-1])["formats"].values()
    assert (none["max_kl"], none["top1"]) == (0.0, 1.0), "the same kernel on the same weights"
    assert int8["mean_kl"] > 0.0 and "KV in float32" in int8["runner"]


def test_a_short_text_is_measured_whole(
    tmp_path: Path, wide_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ab.txt").write_text("ab")
    argv = ["--checkpoint", str(wide_folder), "--text", str(tmp_path / "ab.txt"), "--quantization", "int8"]
    status, out, _ = run(capsys, *argv)
    assert status == 0
    assert json.loads(out.splitlines()[-1])["formats"]["int8"]["num_positions"] == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--positions", "0"], "--positions must be at least 1, got 0"),
        (["--quantization", "auto,int3"], "--quantization 'int3' is not one of none, int8, int4, auto"),
        (["--quantization", ""], "--quantization '' is not one of none, int8, int4, auto"),
        (["--text", "none.txt"], "none.txt: cannot read: No such file or directory"),
        (["--text", "a.txt"], "a.txt: 1 tokens, at least 2 are needed"),
        (["--text", "empty.jsonl"], "empty.jsonl: no conversations"),
        (["--checkpoint", "nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    argv: list[str],
    message: str,
    tmp_path: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "empty.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "--checkpoint", str(tiny_folder), *argv)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and message in err


def test_no_threads_are_refused(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(tiny_folder), "--threads", "0"]) == 2
    assert "--threads must be at least 1, got 0" in capsys.readouterr().err


def test_formats_are_named_once() -> None:
    assert parse_formats("int4, auto,int4") == ["int4", "auto"]
    with pytest.raises(OptionError):
        parse_formats("auto,")


def test_an_empty_file_is_named(tiny: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"blank\.txt: no text"):
        read_windows(tmp_path / "blank.txt", tiny, 10)


def test_int8_keeps_the_default_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    """A trained model, on questions it was not trained with; int4 shows that the bounds can be missed."""
    folder = ROOT / "checkpoints" / "causette"
    status, out, _ = run(capsys, "--checkpoint", str(folder), "--quantization", "int8,int4")
    assert status == 0
    formats = json.loads(out.splitlines()[-1])["formats"]
    int8, int4 = formats["int8"], formats["int4"]
    assert int8["num_positions"] >= 400
    assert int8["mean_kl"] <= 0.001 and int8["top1"] >= 0.98
    assert abs(int8["perplexity"] / int8["reference_perplexity"] - 1.0) < 0.005
    assert 0.001 < int4["mean_kl"] <= 0.01 and int4["top1"] >= 0.955


@pytest.mark.slow
def test_stored_groups_and_int8_keep_a_real_assistant(
    smollm2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`auto` keeps the file's 4-bit groups to the bit, so what is left is the rounding of activations."""
    status, out, _ = run(capsys, "--checkpoint", str(smollm2_folder), "--quantization", "none,auto,int8")
    assert status == 0
    none, auto, int8 = json.loads(out.splitlines()[-1])["formats"].values()
    assert none["num_positions"] >= 400
    assert none["max_kl"] < 1e-6 and none["top1"] == 1.0
    assert 0.0 < auto["mean_kl"] <= 0.006 and auto["top1"] >= 0.955
    assert 0.0 < int8["mean_kl"] <= 0.008 and int8["top1"] >= 0.955
