"""Matchers and masks: against llguidance asked token by token, for every kind of grammar and vocabulary."""

from __future__ import annotations

import json
import math
import random
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.errors import RequestError
from llm.grammar import Grammar, Grammars, GrammarSpec, Kind, Matcher, Vocabulary
from llm.grammar.matcher import expand
from llm.sequence import Accepted
from llm.tokenizer import ByteTokenizer, Tokenizer, load_tiktoken
from llm.tokenizer.build import build_tokenizer
from llm.tokenizer.chars import CharTokenizer
from llm.tokenizer.description import Roles
from tests.masks import forbid
from tests.small_vocabularies import make_spec

ROOT = Path(__file__).parent.parent.parent
END = 256  # of the byte tokenizer
BYTES = Grammars(ByteTokenizer(), 257)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def spec(kind: Kind, source: object = "") -> GrammarSpec:
    return GrammarSpec(kind, source if isinstance(source, str) else json.dumps(source), "field")


def compiled(kind: Kind, source: object = "") -> Grammar:
    return BYTES.compile(spec(kind, source))


def allowed(matcher: Matcher, size: int = 257) -> set[int]:
    logits = torch.zeros(1, size)
    forbid(logits, [matcher])
    return {token for token in range(size) if logits[0, token] == 0}


def walk(matcher: Matcher, text: str | bytes, tokenizer: Tokenizer | None = None) -> Accepted:
    """The last token's fate; every token before it is allowed and goes on."""
    data = text.encode() if isinstance(text, str) else text
    accepted = Accepted.GOES_ON
    for index, token in enumerate(data):
        assert accepted is Accepted.GOES_ON, (index, accepted)
        accepted = matcher.accept(token)
    return accepted


def fits(grammar: Grammar, text: str) -> bool:
    """Whether the whole text is in the language, byte by byte."""
    matcher = grammar.matcher(frozenset({END}))
    for byte in text.encode():
        if matcher.accept(byte) is Accepted.REFUSED:
            return False
    return matcher.accept(END) is Accepted.END


# The mask.


@cache
def vocabulary(name: str) -> Tokenizer:
    if name == "gpt2":
        return load_tiktoken(ROOT / "checkpoints/causette/tokenizer.tiktoken")
    return build_tokenizer(make_spec(name), name, Roles())[0]


GRAMMARS: list[tuple[Kind, object]] = [
    ("json_object", ""),
    ("regex", r"[A-Z][a-zé漢]{2,5}( \d{1,3})?!*"),
    ("choice", ["the cat", "the car", "thé 漢字", " and"]),
    ("grammar", 'start: word ("," " "? word)*\nword: /[a-z]+/ | "[" start "]"'),
    ("json_schema", {"properties": {"name": {"enum": ["Ada", "Alan"]}, "n": {"type": "integer"}},
                     "required": ["name"], "type": "object"}),
]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "bytes",
        pytest.param("gpt2", marks=pytest.mark.slow),
        "smollm",
        "qwen",
        "llama3",
        "metaspace",
        "unigram",
    ],
)
def test_a_mask_is_what_llguidance_says_of_every_single_token(name: str) -> None:
    tokenizer = ByteTokenizer() if name == "bytes" else vocabulary(name)
    grammars, size = Grammars(tokenizer, tokenizer.vocab_size), tokenizer.vocab_size
    for number, (kind, source) in enumerate(GRAMMARS):
        grammar, draw = grammars.compile(spec(kind, source)), random.Random(number)
        matcher = grammar.matcher()
        for _ in range(8):
            found = allowed(matcher, size)
            slow = {i for i in range(size) if matcher.state.validate_tokens([i])}
            assert found == slow
            assert not any(tokenizer.token_bytes(token) == b"" for token in found)
            if not found or matcher.accept(draw.choice(sorted(found))) is not Accepted.GOES_ON:
                break


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_a_regex_of_fixed_length_against_pythons(seed: int) -> None:
    """Byte by byte, the prefixes that can go on are those with a completion."""
    language = {a + b + c for a in "ab" for b in "0é" for c in "xyz" if (a, c) != ("b", "z")}
    grammar = compiled("regex", "a[0é][xyz]|b[0é][xy]")
    matcher, text, draw = grammar.matcher(frozenset({END})), b"", random.Random(seed)
    while True:
        going = {word.encode()[len(text)] for word in language if word.encode().startswith(text + b"")
                 and len(word.encode()) > len(text)}  # fmt: skip
        assert allowed(matcher) == (going or {END})
        if not going:
            break
        byte = draw.choice(sorted(going))
        text += bytes([byte])
        complete = text.decode(errors="ignore") in language and text.decode(errors="ignore").encode() == text
        assert matcher.accept(byte) is (Accepted.COMPLETE if complete else Accepted.GOES_ON)


def test_a_batch_is_row_by_row_and_padding_is_never_allowed() -> None:
    matchers = [compiled(kind, source).matcher(frozenset({END})) for kind, source in GRAMMARS]
    walk(matchers[1], "Abc")
    logits = torch.randn(len(matchers), 300, generator=torch.Generator().manual_seed(0))
    together, alone = logits.clone(), logits.clone()
    forbid(together, matchers)
    for row, matcher in enumerate(matchers):
        forbid(alone[row : row + 1], [matcher])
    assert torch.equal(together, alone)
    assert torch.equal(together.isinf(), together == -math.inf)
    assert torch.equal(together[together.isfinite()], logits[together.isfinite()]), (
        "allowed ones as they were"
    )
    assert together[:, 257:].isinf().all()
    assert together[1, END] == logits[1, END], "the grammar may end after Abc"


def test_rows_without_a_matcher_are_left_alone() -> None:
    matcher = compiled("choice", ["a"]).matcher()
    logits = torch.zeros(3, 260)
    forbid(logits, [None, matcher, None])
    assert logits[0].eq(0).all() and logits[2].eq(0).all()
    assert logits[1].eq(0).nonzero().flatten().tolist() == [ord("a")]
    forbid(logits, [None, None, None])
    forbid(logits[:0], [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_type_of_logits(dtype: torch.dtype) -> None:
    logits = torch.ones(1, 257, dtype=dtype)
    forbid(logits, [compiled("choice", ["a"]).matcher()])
    assert logits[0, ord("a")] == 1 and logits.isinf().sum() == 256


def test_the_way_of_other_devices_gives_the_same() -> None:
    octets = torch.randint(256, (3, 40), dtype=torch.uint8).numpy()
    fast = expand(octets, torch.device("cpu"))
    # The meta device computes shapes only; what runs there is the code of every device but the CPU.
    assert expand(octets, torch.device("meta")).shape == fast.shape == (3, 320)
    expected = [[0.0 if row[i // 8] >> (i % 8) & 1 else -math.inf for i in range(320)] for row in octets]
    assert fast.tolist() == expected


def test_logits_that_are_not_finite_stay_so() -> None:
    logits = torch.full((1, 257), math.nan)
    forbid(logits, [compiled("choice", ["a"]).matcher()])
    assert not logits[0, ord("a")].isfinite()


# The end.


def test_nothing_can_follow() -> None:
    matcher = compiled("choice", ["yes", "no"]).matcher()
    assert walk(matcher, "yes") is Accepted.COMPLETE
    assert matcher.error is None
    assert allowed(matcher) == set()
    assert walk(compiled("json_object").matcher(), '{"a": [1]}') is Accepted.COMPLETE


def test_an_end_is_allowed_where_the_grammar_may_end_and_only_there() -> None:
    grammar = compiled("regex", "ab*")
    matcher = grammar.matcher(frozenset({END, ord("\n"), 5000}))
    assert allowed(matcher) == {ord("a")}
    assert matcher.accept(ord("a")) is Accepted.GOES_ON
    assert allowed(matcher) == {ord("b"), ord("\n"), END}
    assert matcher.accept(ord("\n")) is Accepted.END
    assert walk(grammar.matcher(frozenset({END})), b"a") is Accepted.GOES_ON
    early = grammar.matcher(frozenset({END}))
    assert early.accept(END) is Accepted.REFUSED and early.error == "token 256 is not allowed here"


def test_an_end_waits_for_the_least_number_of_tokens_unless_nothing_else_may_come() -> None:
    letters = set(b"abcdefghijklmnopqrstuvwxyz")
    matcher = compiled("regex", "[a-z]*").matcher(frozenset({END}), min_tokens=2)
    for token in b"xy":
        assert allowed(matcher) == letters
        assert matcher.accept(token) is Accepted.GOES_ON
    assert allowed(matcher) == letters | {END}
    short = compiled("choice", ["no"]).matcher(frozenset({END}), min_tokens=9)
    assert walk(short, "no") is Accepted.COMPLETE


def test_without_ends_only_text_is_allowed() -> None:
    matcher = compiled("regex", "ab*").matcher()
    walk(matcher, "ab")
    assert allowed(matcher) == {ord("b")}
    assert matcher.accept(END) is Accepted.REFUSED


def test_an_end_that_is_text_here_is_text() -> None:
    """The plain template ends a reply at a line break, which a form may hold."""
    matcher = compiled("regex", "a\nb+").matcher(frozenset({ord("\n")}))
    assert walk(matcher, "a") is Accepted.GOES_ON
    assert ord("\n") in allowed(matcher)
    assert walk(matcher, "\n") is Accepted.GOES_ON
    assert ord("\n") not in allowed(matcher)
    assert walk(matcher, "b") is Accepted.GOES_ON
    assert matcher.accept(ord("\n")) is Accepted.END
    lines = compiled("regex", "(a\n?)+").matcher(frozenset({ord("\n")}))
    assert walk(lines, "a\n") is Accepted.GOES_ON, "text, although the form may end here"
    assert lines.accept(ord("\n")) is Accepted.END


def test_what_is_not_allowed_is_refused_for_good() -> None:
    for token in (ord("x"), END, 257, 10**6, -1):
        matcher = compiled("choice", ["ab"]).matcher()
        assert matcher.accept(token) is Accepted.REFUSED
        assert matcher.error is not None and "\n" not in matcher.error and len(matcher.error) <= 200
        assert matcher.accept(ord("a")) is Accepted.REFUSED
        assert allowed(matcher) == set()


def test_matchers_of_one_grammar_do_not_meet() -> None:
    grammar = compiled("choice", ["ab", "cd"])
    first, second = grammar.matcher(), grammar.matcher()
    first.accept(ord("a"))
    assert allowed(second) == {ord("a"), ord("c")}
    assert allowed(first) == {ord("b")}


def test_asking_for_masks_changes_nothing() -> None:
    asked, unasked = compiled("json_object").matcher(), compiled("json_object").matcher()
    for byte in b'{"a\xc3\xa9": [1.5, tru':
        allowed(asked)
        assert asked.accept(byte) is unasked.accept(byte) is Accepted.GOES_ON
    assert allowed(asked) == allowed(unasked) == {ord("e")}


# Vocabularies.


class Listed:
    """A vocabulary written down."""

    def __init__(self, *tokens: bytes) -> None:
        self.tokens = tokens

    def token_bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id]


def of_tokens(*tokens: bytes) -> Grammars:
    vocabulary: Vocabulary = Listed(*tokens)
    return Grammars(vocabulary, len(tokens))


def test_ids_with_the_same_bytes_are_all_fine() -> None:
    grammar = of_tokens(b"a", b"", b"a", b"ab", b"b", b"ab", b"b").compile(spec("choice", ["ab"]))
    matcher = grammar.matcher()
    assert allowed(matcher, 7) == {0, 2, 3, 5}
    assert matcher.accept(2) is Accepted.GOES_ON
    assert allowed(matcher, 7) == {4, 6}
    assert matcher.accept(6) is Accepted.COMPLETE
    assert grammar.matcher().accept(5) is Accepted.COMPLETE


def test_bytes_that_no_text_holds_are_never_allowed() -> None:
    """0xFF would pass for a marker of llguidance's own."""
    matcher = (
        of_tokens(b"a", b"\xff", b"\xffa", b"\xc0", b"a\xff", b"\xfe")
        .compile(spec("regex", "(?s:.+)"))
        .matcher()
    )
    assert allowed(matcher, 6) == {0}


def test_characters_without_an_end_of_text() -> None:
    tokenizer = CharTokenizer("\n abcé漢😀")
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    matcher = grammars.compile(spec("regex", "[a-zé]+ 漢")).matcher(frozenset({0}))
    assert [walk_char(matcher, tokenizer, char) for char in "abé 漢"][-1] is Accepted.COMPLETE


def walk_char(matcher: Matcher, tokenizer: Tokenizer, char: str) -> Accepted:
    return matcher.accept(tokenizer.encode(char)[0])


def test_what_the_vocabulary_cannot_write() -> None:
    tokenizer = CharTokenizer("xyz{")
    grammars = Grammars(tokenizer, 4)
    with pytest.raises(
        RequestError, match="field: this choice cannot be enforced: no token of this vocabulary"
    ):
        grammars.compile(spec("choice", ["no", "on"]))
    matcher = grammars.compile(spec("json_object")).matcher(frozenset({0}))
    matcher.accept(3)
    assert allowed(matcher, 4) == set(), "a dead end: the vocabulary has no brace to close this one"
    assert matcher.error == "no token of this vocabulary can go on"
    assert matcher.accept(0) is Accepted.REFUSED


# Kinds.


@settings(max_examples=50)
@given(choices=st.lists(TEXTS, min_size=1, max_size=5), other=TEXTS)
@example(choices=['"', "\\", "/", "\n", "\x00", "|", "#", "//", "<[5]>", "%json", "é"], other="a")
def test_a_choice_is_one_of_its_texts_and_no_other(choices: list[str], other: str) -> None:
    grammar = compiled("choice", choices)
    assert all(fits(grammar, choice) for choice in choices)
    assert fits(grammar, other) == (other in choices)
    assert not fits(grammar, choices[0] + "\x01")


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        (r"\d{2}/\d{2}", ["12/34"]),
        (r"a\/b", ["a/b"]),
        (r"[/]\\", ["/\\"]),
        ("a\nb", ["a\nb"]),
        (r"^ab?$", ["a", "ab"]),
        (r"(?i)été", ["ÉTÉ", "été"]),
        (r'"#x"|//', ['"#x"', "//"]),
        (r"(?s:.){2}x", ["\n\nx"]),
        (r"\p{Lu}\w*", ["Éa"]),
    ],
)
def test_a_regex_is_of_the_whole_text(pattern: str, texts: list[str]) -> None:
    grammar = compiled("regex", pattern)
    for text in texts:
        assert re.fullmatch(pattern.replace(r"\p{Lu}", "[A-ZÉ]"), text)
        assert fits(grammar, text)
        assert not fits(grammar, f"{text}~") and not fits(grammar, f"~{text}")


def test_json_object_is_an_object_on_one_line() -> None:
    grammar = compiled("json_object")
    good = ["{}", '{"a":1}', '{"a": {"é": [true, null,-1.5e3]}}', '{"a": "\\n\\"", "b": []}']
    bad = [
        "[]",
        "1",
        '{"a"}',
        "{'a':1}",
        '{"a":01}',
        '{"a":1,}',
        " {}",
        '{ "a":1}',
        '{"a":"\n"}',
        '{"a":  1}',
    ]
    bad += ['{\n"a":1}', '{"a" :1}', '{"a":1 }', '{"\\u0061":1}']
    for text in good:
        json.loads(text)
        assert fits(grammar, text), text
    assert not [text for text in bad if fits(grammar, text)]


def test_lark_and_gbnf() -> None:
    lark = compiled("grammar", 'start: "<" NAME ">" %json {"type": "integer"} "</" NAME ">"\nNAME: /[a-z]+/')
    assert fits(lark, "<a>12</b>") and not fits(lark, "<a>x</a>")
    gbnf = compiled("grammar", 'root ::= "say " word+\nword ::= [a-z]{2,3} | "(" word ")"')
    assert fits(gbnf, "say ab(abc)") and not fits(gbnf, "say a")


def test_json_inside_lark_is_bounded_and_checked_like_any() -> None:
    grammar = compiled(
        "grammar", 'start: "a" %json {"oneOf": [{"const": 1}, {"const": [2, "<[5]>"]}], "title": "}"}'
    )
    assert fits(grammar, "a1") and fits(grammar, 'a[2, "<[5]>"]') and not fits(grammar, 'a[2,  "<[5]>"]')
    own = 'start: %json {"type": "object", "x-guidance": {"key_separator": ":"}}'
    assert fits(compiled("grammar", own), '{"a":1}') and not fits(compiled("grammar", own), '{"a": 1}')
    own = 'start: %json {"type": "object", "x-guidance": {"whitespace_pattern": "\\\\n"}}'
    assert fits(compiled("grammar", own), '{\n"a"\n:1}') and not fits(compiled("grammar", own), '{ "a":1}')
    assert fits(compiled("grammar", "start: %json true"), '"x"')
    with pytest.raises(RequestError, match="keyword 'not' is not supported"):
        compiled("grammar", 'start: %json {"not": {}}')
    assert fits(compiled("grammar", 'start: "%json {}" // %json {"not": {}}\n'), "%json {}"), (
        "text, and a comment"
    )


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("json_schema", "", "not JSON"),
        ("json_schema", '{"type": }', "not JSON"),
        ("json_schema", '{"const": NaN}', "NaN is not a number"),
        ("json_schema", '{"const": "\\ud800"}', "surrogates not allowed"),
        ("json_schema", "[]", "must be an object or a boolean"),
        ("json_schema", "false", "false allows no value"),
        ("regex", "(", "regex cannot be enforced: unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "", "allows no text"),
        ("regex", "\ud800", "lone surrogate"),
        ("choice", "[]", "1 to 1024 strings, got 0"),
        ("choice", '{"a": 1}', "got dict"),
        ("choice", '["a", ""]', r"field\[1\]: expected a string that is not empty"),
        ("choice", '["a", 3]', r"field\[1\]"),
        ("choice", "yes", "not JSON"),
        ("grammar", "", "no start rule"),
        ("grammar", "start: missing", "unknown name"),
        ("grammar", "start: start", "no token of this vocabulary can go on"),
        ("grammar", "start: <|endoftext|>", "special tokens"),
        ("grammar", "start: <[5]>", "special tokens"),
        ("grammar", 'start[temperature=0.5]: "a"', "temperature"),
        ("grammar", 'start[stop="x"]: /a+/', "stop"),
        ("grammar", "start: %json {", "not followed by a JSON schema"),
        ("grammar", 'start: %json {"x-guidance": {"lenient": true}}', "x-guidance"),
        ("grammar", 'start: %json {"x-guidance": 3}', "x-guidance"),
        ("grammar", "root ::= (", "not a GBNF grammar"),
        ("grammar", 'leaf ::= "a"', "No 'root' rule"),
    ],
)  # fmt: skip
def test_what_is_refused_in_one_line(kind: Kind, source: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        BYTES.compile(spec(kind, source))
    assert caught.value.param == "field"
    assert str(caught.value).startswith("field") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


# The cache.


def test_equal_specs_share_a_grammar_and_the_oldest_goes() -> None:
    grammars = Grammars(ByteTokenizer(), 257, max_cached=2)
    first = grammars.compile(spec("choice", ["a"]))
    assert grammars.compile(GrammarSpec("choice", '["a"]', "another field")) is first
    second = grammars.compile(spec("choice", ["b"]))
    grammars.compile(spec("choice", ["a"]))
    grammars.compile(spec("choice", ["c"]))
    assert grammars.compile(spec("choice", ["a"])) is first, "used later than b"
    assert grammars.compile(spec("choice", ["b"])) is not second


def test_an_error_is_not_kept_and_names_the_field_of_its_request() -> None:
    for param in ("response_format", "structured_outputs.regex"):
        with pytest.raises(RequestError, match=f"^{param}: ") as caught:
            BYTES.compile(GrammarSpec("regex", "(", param))
        assert caught.value.param == param


def test_many_threads_compile_at_once() -> None:
    grammars = Grammars(ByteTokenizer(), 257, max_cached=3)

    def work(number: int) -> Accepted:
        return walk(grammars.compile(spec("choice", [f"n{number % 5}"])).matcher(), f"n{number % 5}")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(64))) == {Accepted.COMPLETE}


def test_a_lexer_at_its_limit_ends_its_replies_and_is_built_anew() -> None:
    hungry = spec("regex", "(.*[aeiou].{30}[xyz].{20})|(.*[bcd].{25}[efg].{15}.*)")
    grammars = Grammars(vocabulary("gpt2"), 50257)
    grammar = grammars.compile(hungry)
    matcher, draw = grammar.matcher(), random.Random(0)
    while found := allowed(matcher, 50257):
        assert matcher.accept(draw.choice(sorted(found))) is Accepted.GOES_ON
    assert matcher.error is not None and "lexer error" in matcher.error
    assert matcher.accept(0) is Accepted.REFUSED
    assert allowed(grammar.matcher(), 50257) == set(), "the lexer is shared"
    again = grammars.compile(hungry)
    assert again is not grammar and allowed(again.matcher(), 50257)
