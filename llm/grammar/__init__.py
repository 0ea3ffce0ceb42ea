"""Structured output: a JSON schema, a regex, a choice or a grammar says which tokens may come next.

`Grammars` compiles what a request asks for, once, and keeps it; each reply walks its own `Matcher`;
`next_masks` says of every token, in one bit, whether it stays within the grammar, and `expand` turns bits
into what is added to logits. On `llguidance`, whose masks are exact: a token is allowed if and only if its
bytes can go on. Whatever cannot be enforced is refused by name, never ignored. Refuses to know HTTP, models
and how tokens are drawn.

    >>> grammars = Grammars(tokenizer, tokenizer.vocab_size)
    >>> matcher = grammars.compile(GrammarSpec("choice", '["yes", "no"]')).matcher(ends=frozenset({50256}))
    >>> masks = expand(next_masks([matcher]), logits.device)
    >>> matcher.accept(int((logits + masks[:, : logits.shape[1]]).argmax()))
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from llm.errors import CauserieError, RequestError
from llm.grammar.lark import GRAMMAR_LIMITS, LIMITS, program
from llm.grammar.matcher import Matcher, expand, next_masks, one_line
from llm.grammar.schema import check_schema
from llm.grammar.vocabulary import Vocabulary, load_vocabulary

__all__ = [
    "Grammar",
    "GrammarSpec",
    "Grammars",
    "Kind",
    "Matcher",
    "Vocabulary",
    "check_schema",
    "expand",
    "next_masks",
]

Kind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What a request asks its reply to be; equal specs share one compiled grammar.

    Attributes:
        kind: how `source` is read; "grammar" is llguidance's Lark, or GBNF where rules are written `::=`.
        source: a schema's JSON text, a JSON list of strings for a choice, or the text of a regex or grammar;
            "" for json_object.
        param: the request's field, for error messages.
    """

    kind: Kind
    source: str = ""
    param: str = field(default="response_format", compare=False)


class Grammar:
    """A compiled grammar; many replies may walk it at once, each with its own matcher.

    They share one lexer, which grows as they meet new text: a mask of text met before takes microseconds. The
    limit on its states is shared too, and whoever meets it ends all replies of this grammar.
    """

    def __init__(self, start: LLMatcher, vocab_size: int) -> None:
        self._start, self._vocab_size = start, vocab_size

    def matcher(self, ends: frozenset[int] = frozenset(), min_tokens: int = 0) -> Matcher:
        """A fresh state before the first token.

        Args:
            ends: ids that end a reply, allowed wherever the grammar may end.
            min_tokens: before that many, an end may come only where no text may.
        """
        return Matcher(self._start.deep_copy(), self._vocab_size, ends, min_tokens)

    def why_stuck(self) -> str | None:
        """Why no text can begin: it allows none, or its lexer has met the limit. None when some can."""
        first = self.matcher()
        return None if first.can_go_on() else first.error or "it allows no text at all"


class Grammars:
    """The compiled grammars of one model, the latest used kept. Any thread may compile.

    Args:
        tokenizer: where the bytes of each id come from; ids without bytes (control tokens, holes) are never
            allowed.
        vocab_size: ids the tokenizer knows.
        max_cached: compiled grammars kept.
    """

    def __init__(self, tokenizer: Vocabulary, vocab_size: int, *, max_cached: int = 64) -> None:
        assert max_cached > 0
        self._tokenizer, self._vocab_size, self._max_cached = tokenizer, vocab_size, max_cached
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[GrammarSpec, Grammar] = OrderedDict()
        self._lock, self._loading = Lock(), Lock()

    def compile(self, spec: GrammarSpec) -> Grammar:
        """The grammar of a spec, from the cache or compiled now. Blocks, without holding the interpreter.

        Raises:
            RequestError: it is malformed, too large, can never be met, or asks for what cannot be enforced.
        """
        with self._lock:
            known = self._compiled.pop(spec, None)
            if known is not None and known.why_stuck() is None:
                self._compiled[spec] = known  # the latest used is the last
                return known
        grammar = self._compile(spec)
        with self._lock:
            self._compiled[spec] = grammar
            if len(self._compiled) > self._max_cached:
                self._compiled.popitem(last=False)
        return grammar

    def _compile(self, spec: GrammarSpec) -> Grammar:
        text = program(spec.kind, spec.source, spec.param)
        limits = GRAMMAR_LIMITS if spec.kind == "grammar" else LIMITS
        with _refused(spec):
            start = LLMatcher(self._load(), text, log_level=0, limits=LLParserLimits(**limits))
            if start.is_error():
                raise RequestError(_cannot(spec, start.get_error()), param=spec.param)
            grammar = Grammar(start, self._vocab_size)
            if (why := grammar.why_stuck()) is not None:
                raise RequestError(_cannot(spec, why), param=spec.param)
        return grammar

    def _load(self) -> LLTokenizer:
        with self._loading:
            if self._vocabulary is None:
                self._vocabulary = load_vocabulary(self._tokenizer, self._vocab_size)
            return self._vocabulary


def _cannot(spec: GrammarSpec, why: str) -> str:
    name = {"json_schema": "JSON schema", "json_object": "JSON object"}.get(spec.kind, spec.kind)
    return f"{spec.param}: this {name} cannot be enforced: {one_line(why)}"


@contextmanager
def _refused(spec: GrammarSpec) -> Iterator[None]:
    """Whatever llguidance raises becomes a line of ours; a panic of its Rust code is a BaseException."""
    try:
        yield
    except CauserieError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = str(error).strip() or type(error).__name__
        raise RequestError(_cannot(spec, why), param=spec.param) from None
