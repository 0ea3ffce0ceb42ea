"""Text and tokens of a reply stay in step, whatever the tokens' borders, the stop strings and the spaces."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm.choice import Choice, ReplyToken, TextDelta
from llm.config import SamplingParams
from llm.errors import EngineStopped, StepFailed
from llm.sequence import FinishReason, Logprob, Sequence, TokenEvent
from llm.tokenizer import ByteTokenizer


class Pieces(ByteTokenizer):
    """Ids are whatever bytes the test names."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]


def events_of(
    pieces: list[bytes], finish: FinishReason = FinishReason.STOP, *, end: bool = False
) -> list[TokenEvent]:
    """One per piece; with `end` the last is no text."""
    last = len(pieces) - 1
    return [
        TokenEvent(
            0,
            i,
            finish if i == last else None,
            is_text=not (end and i == last),
            logprob=Logprob(i, -1.0 - i, 1),
            at=float(i),
            batch_size=2,
        )
        for i in range(len(pieces))
    ]


def read(
    pieces: list[bytes],
    stop: tuple[str, ...] = (),
    *,
    strip: bool = False,
    min_tokens: int = 0,
    end: bool = False,
) -> list[TextDelta]:
    """Deltas of these tokens, up to the last one the choice wants."""
    params = SamplingParams(max_tokens=len(pieces), stop=stop, min_tokens=min_tokens)
    choice = Choice(Sequence([1], params), Pieces(pieces), strip=strip, with_tokens=True)
    deltas = []
    for event in events_of(pieces, end=end):
        deltas.append(choice.take(event))
        if deltas[-1].finish is not None:
            break
    return deltas


def split(text: str, cuts: list[int]) -> list[bytes]:
    """The text's bytes, cut at these places."""
    data = text.encode()
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]


TEXT = st.text(st.sampled_from("ab \n\u2003é漢😀"), min_size=1, max_size=12)


@given(
    text=TEXT,
    cuts=st.lists(st.integers(0, 60), max_size=30),
    stop=st.lists(st.sampled_from(["ab", "b\n", "é", "aa ", "😀a"]), max_size=2, unique=True),
    strip=st.booleans(),
)
@example(text=" \u2003a", cuts=[1, 2, 3, 4], stop=[], strip=True)
@example(text="xab", cuts=[1, 2], stop=["ab"], strip=False)
def test_joined_bytes_start_with_the_text(text: str, cuts: list[int], stop: list[str], strip: bool) -> None:
    pieces = split(text, cuts)
    deltas = read(pieces, tuple(stop), strip=strip)
    so_far, data, tokens = "", b"", list[ReplyToken]()
    for delta in deltas:
        so_far += delta.text
        tokens += delta.tokens
        data = b"".join(token.data for token in tokens)
        assert data.startswith(so_far.encode()), "a token comes with the text it begins in"
    cut = min((text.find(s) for s in stop if s in text), default=None)
    whole = text if cut is None else text[:cut]
    assert so_far == (whole.lstrip() if strip else whole)
    if cut is None:
        assert data == so_far.encode() and len(tokens) == len(pieces)
    else:
        without_last = b"".join(token.data for token in tokens[:-1])
        assert len(without_last) < max(1, len(so_far.encode())), (
            "nothing that the stop string swallowed whole"
        )
    assert [token.id for token in tokens] == list(range(len(tokens)))


def test_a_token_that_ends_the_reply_is_not_among_them() -> None:
    deltas = read([b"a", b"<end>"], end=True)
    assert "".join(d.text for d in deltas) == "a"
    assert [t.id for d in deltas for t in d.tokens] == [0]
    assert deltas[-1].finish is FinishReason.STOP and deltas[-1].num_tokens == 1


def test_stop_strings_wait_for_min_tokens() -> None:
    deltas = read([b"a", b"b", b"ab", b"c", b"ab", b"x"], ("ab",), min_tokens=3)
    assert "".join(d.text for d in deltas) == "ababc"
    assert deltas[-1].finish is FinishReason.STOP
    assert "".join(d.text for d in read([b"a", b"b", b"c"], ("ab",), min_tokens=1)) == "abc", (
        "begun too early"
    )


def test_without_being_asked_no_tokens_are_handed_out() -> None:
    choice = Choice(Sequence([1], SamplingParams(2)), ByteTokenizer(), strip=False, with_tokens=False)
    assert choice.take(TokenEvent(0, 65)) == TextDelta(0, "A", 1)


def test_times_are_the_engines() -> None:
    timing = read([b"a", b"b", b"c"])[-1].timing
    assert timing is not None
    assert (timing.first, timing.last, timing.num_tokens) == (0.0 or timing.first, 2.0, 3)
    assert math.isfinite(timing.submitted)


def test_scored_prompts_pass_through() -> None:
    choice = Choice(Sequence([1, 2], SamplingParams(2)), ByteTokenizer(), strip=True, with_tokens=True)
    score = (Logprob(2, -0.5, 1),)
    assert choice.take(TokenEvent(0, None, prompt_logprobs=score)).prompt_logprobs == score


@pytest.mark.parametrize(
    ("finish", "error"), [(FinishReason.ERROR, StepFailed), (FinishReason.ABORT, EngineStopped)]
)
def test_an_engine_that_cannot_go_on_raises(finish: FinishReason, error: type[Exception]) -> None:
    choice = Choice(Sequence([1], SamplingParams(2)), ByteTokenizer(), strip=True, with_tokens=False)
    with pytest.raises(error):
        choice.take(TokenEvent(0, None, finish, StepFailed("no luck")))
