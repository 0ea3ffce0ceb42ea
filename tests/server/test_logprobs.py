"""Shapes of log probabilities: exact bytes, finite numbers, places in the text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm.choice import ReplyToken
from llm.likelihood import finite
from llm.sequence import Logprob
from llm.tokenizer import ByteTokenizer
from server.api.logprobs import CompletionLogprobs, chat_entries, prompt_entries, token_name
from tests.fakes import scripted_logprob

BYTES = ByteTokenizer()
EURO = "€".encode()


class WordTokenizer(ByteTokenizer):
    """Some words for ids from 300 on, and an end of text that has a spelling."""

    control: Mapping[str, int] = MappingProxyType({"<|end|>": 256})
    words = (" a", "  ", "\u00a0b", " ")
    vocab_size = 304

    def token_bytes(self, token_id: int) -> bytes:
        return self.words[token_id - 300].encode() if token_id >= 300 else super().token_bytes(token_id)


WORDS = WordTokenizer()


def token(token_id: int, logprob: Logprob | None = None, *, data: bytes | None = None) -> ReplyToken:
    own = WORDS.token_bytes(token_id)
    shown = own if data is None else data
    return ReplyToken(
        token_id, shown, len(shown) < len(own), logprob or scripted_logprob(token_id, 0), 0.0, 1
    )


@pytest.mark.parametrize(
    ("value", "written"), [(-0.0, 0.0), (-3.5, -3.5), (-math.inf, -9999.0), (math.nan, -9999.0)]
)
def test_a_value_is_always_a_finite_number(value: float, written: float) -> None:
    assert finite(value) == written


def test_a_chat_entry_has_the_exact_bytes_and_the_best_others() -> None:
    logprob = Logprob(0xE2, -1.5, 2, ((104, -0.5), (0xE2, -1.5), (256, -math.inf)))
    (entry,) = chat_entries([token(0xE2, logprob)], WORDS, num_top=3)
    assert entry == {
        "token": "\ufffd",
        "logprob": -1.5,
        "bytes": [0xE2],
        "top_logprobs": [
            {"token": "h", "logprob": -0.5, "bytes": [104]},
            {"token": "\ufffd", "logprob": -1.5, "bytes": [0xE2]},
            {"token": "<|end|>", "logprob": -9999.0, "bytes": []},
        ],
    }
    json.dumps(entry, allow_nan=False)


@pytest.mark.parametrize("num_top", [0, 1, 2])
def test_a_chat_entry_lists_as_many_others_as_were_asked_for(num_top: int) -> None:
    (entry,) = chat_entries([token(104, scripted_logprob(104, 5))], WORDS, num_top)
    assert [other["token"] for other in entry["top_logprobs"]] == ["h", "a"][:num_top]


def test_others_of_a_token_that_lost_its_whitespace_are_shown_without_theirs() -> None:
    top = tuple((token_id, -0.1) for token_id in (300, 301, 302, 104, 0xE2))
    (entry,) = chat_entries([token(300, Logprob(300, -0.1, 1, top), data=b"a")], WORDS, num_top=5)
    assert [other["bytes"] for other in entry["top_logprobs"]] == [[97], [], [98], [104], [0xE2]]
    assert [other["token"] for other in entry["top_logprobs"]] == ["a", "", "b", "h", "\ufffd"]
    (plain,) = chat_entries([token(300, Logprob(300, -0.1, 1, top))], WORDS, num_top=5)
    assert [bytes(other["bytes"]) for other in plain["top_logprobs"]] == [
        b" a",
        b"  ",
        "\u00a0b".encode(),
        b"h",
        b"\xe2",
    ]


def test_a_prompts_entries_name_ids_ranks_and_text() -> None:
    logprobs = [Logprob(98, -2.0, 7, ((104, -0.5), (0xE2, -1.0))), Logprob(104, -0.25, 1, ((104, -0.25),))]
    assert prompt_entries([97, 98, 104], logprobs, WORDS) == [
        None,
        {
            "104": {"logprob": -0.5, "rank": 1, "decoded_token": "h"},
            "226": {"logprob": -1.0, "rank": 2, "decoded_token": "\ufffd"},
            "98": {"logprob": -2.0, "rank": 7, "decoded_token": "b"},
        },
        {"104": {"logprob": -0.25, "rank": 1, "decoded_token": "h"}},
    ]
    assert prompt_entries([97, 98, 104], logprobs, WORDS, num_top=0)[1] == {
        "98": {"logprob": -2.0, "rank": 7, "decoded_token": "b"}
    }
    assert prompt_entries([97], [], WORDS) == [None]


def test_names_of_tokens() -> None:
    assert [token_name(WORDS, i) for i in (104, 0xE2, 256, 300)] == ["h", "\ufffd", "<|end|>", " a"]


def test_an_echo_begins_with_no_value_and_counts_characters() -> None:
    prompt = [*b"h", *EURO]
    shape = CompletionLogprobs(BYTES, 1).prompt(prompt, [scripted_logprob(i, 2) for i in prompt[1:]])
    assert shape == {
        "tokens": ["h", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"],
        "token_logprobs": [None, -0.5, -0.5, -0.5],
        "top_logprobs": [None, {"bytes:\\xe2": -0.5}, {"bytes:\\x82": -0.5}, {"bytes:\\xac": -0.5}],
        "text_offset": [0, 1, 1, 1],
    }


@pytest.mark.parametrize(
    ("num_top", "names"), [(0, ["z"]), (1, ["a", "z"]), (2, ["a", "b", "z"]), (3, ["a", "b", "z"])]
)
def test_the_token_itself_is_always_among_the_best(num_top: int, names: list[str]) -> None:
    logprob = Logprob(122, -3.0, 3, ((97, -0.5), (98, -1.0), (122, -3.0)))
    part = CompletionLogprobs(BYTES, num_top).reply([token(122, logprob)])
    assert list(part["top_logprobs"][0]) == names
    assert part["top_logprobs"][0]["z"] == part["token_logprobs"][0] == -3.0


def test_of_two_tokens_with_one_name_the_better_counts() -> None:
    """Ids without text share the empty name; a harness that asks for the best must find it."""
    logprob = Logprob(290, -3.0, 2, ((291, -0.5),))
    part = CompletionLogprobs(NamelessTokenizer(), 1).reply([ReplyToken(290, b"", False, logprob, 0.0, 1)])
    assert part["top_logprobs"] == [{"": -0.5}] and part["token_logprobs"] == [-3.0]


class NamelessTokenizer(ByteTokenizer):
    vocab_size = 300


class SpacedTokenizer(ByteTokenizer):
    """Writes a space before the first word, as SentencePiece does, and takes it off the text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return super().decode(token_ids).removeprefix(" ")


def test_places_count_in_the_text_that_is_shown() -> None:
    shape = CompletionLogprobs(SpacedTokenizer(), 0)
    prompt = list(b" ab")
    part = shape.prompt(prompt, [scripted_logprob(i, 0) for i in prompt[1:]])
    assert part["text_offset"] == [0, 0, 1]
    assert shape.reply([token(99)])["text_offset"] == [2]


text = st.text(st.sampled_from("aé€😀\n"), max_size=6)


@given(st.lists(st.binary(min_size=1, max_size=3) | text.filter(bool).map(str.encode), max_size=12))
@example([b"\xed", b"\xa0"])
def test_a_token_is_placed_at_the_character_its_first_byte_is_part_of(data: list[bytes]) -> None:
    """The oracle decodes everything up to that byte."""
    tokens = [ReplyToken(0, item, False, None, 0.0, 1) for item in data]
    placed = CompletionLogprobs(BYTES, 0).reply(tokens)["text_offset"]
    edges = [0, *accumulate(map(len, data))]
    assert placed == [len(b"".join(data)[: edge + 1].decode(errors="replace")) - 1 for edge in edges[:-1]]


def test_a_token_without_text_is_placed_where_the_next_one_is() -> None:
    tokens = [ReplyToken(0, item, False, None, 0.0, 1) for item in (b"", b"a", b"", b"b")]
    assert CompletionLogprobs(BYTES, 0).reply(tokens)["text_offset"] == [0, 0, 1, 1]


def test_a_reply_never_completes_the_prompts_last_character() -> None:
    shape = CompletionLogprobs(BYTES, 0)
    shape.prompt([97, EURO[0]], [scripted_logprob(EURO[0], 0)])
    tokens = [ReplyToken(0, data, False, None, 0.0, 1) for data in (EURO[1:], b"b")]
    assert shape.reply(tokens)["text_offset"] == [2, 4], "a, three bytes that are no characters, b"


@given(text, text)
def test_a_replys_places_go_on_after_the_echo(prompt: str, reply: str) -> None:
    ids = list(prompt.encode()) or [104]
    shape = CompletionLogprobs(BYTES, 0)
    shape.prompt(ids, [scripted_logprob(i, 0) for i in ids[1:]])
    placed = shape.reply(ReplyToken(0, c.encode(), False, None, 0.0, 1) for c in reply)["text_offset"]
    assert placed == [len(BYTES.decode(ids)) + i for i in range(len(reply))]
