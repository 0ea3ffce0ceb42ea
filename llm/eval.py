"""The share of a checkpoint's answers that carry the right fact, beside a retrieval baseline.

    python -m llm.eval --checkpoint checkpoints/causette --data checkpoints/data/test.jsonl

A test line is {"question": text} or {"messages": [...]}, with "fact": an id, or "unknown" for what lies
outside. An answer carries a fact when of each of its key groups one string occurs in it. The baseline answers
with the training question nearest by tf-idf: what the same data gives without a network. Refuses to know
training and HTTP.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llm.chat.template import ChatTemplate, Message, drop_oldest
from llm.checkpoint import load_model, open_checkpoint
from llm.config import GenerationDefaults, SamplingParams
from llm.errors import DataError
from llm.generate import generate_cached
from llm.model import Decoder
from llm.tokenizer import Tokenizer
from llm.train.data import read_jsonl, read_messages
from llm.train.facts import UNKNOWN, Fact, add_phrasings, carries, read_facts, read_unknown
from llm.train.options import run_command

MAX_TOKENS = 60
SAMPLED_SEEDS = (1, 2, 3)

Answer = Callable[[Sequence[Message]], str]


@dataclass(frozen=True, slots=True)
class Case:
    """One test question: a conversation that ends with the user, and the id of the fact it asks for."""

    messages: tuple[Message, ...]
    fact: str

    @property
    def question(self) -> str:
        """The last message."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Miss:
    """An answer that did not carry its fact."""

    case: Case
    answer: str


@dataclass(frozen=True, slots=True)
class Score:
    """How many answers carried their fact, in the domain and outside, and those that did not."""

    in_domain: tuple[int, int]
    unknown: tuple[int, int]
    misses: tuple[Miss, ...]

    @property
    def all(self) -> tuple[int, int]:
        """Right answers and answers."""
        return self.in_domain[0] + self.unknown[0], self.in_domain[1] + self.unknown[1]

    def shares(self) -> dict[str, float | None]:
        """Right / all of each part, None where there is no such question."""
        parts = {"all": self.all, "in_domain": self.in_domain, "unknown": self.unknown}
        return {name: round(right / count, 4) if count else None for name, (right, count) in parts.items()}


def read_cases(path: str | Path, facts: dict[str, Fact]) -> list[Case]:
    """The test set.

    Raises:
        DataError: a line without a question, one whose last turn is not the user's, or an unknown fact.
    """
    cases = []
    for where, value in read_jsonl(path):
        if isinstance(value.get("question"), str):
            messages = read_messages(where, [{"role": "user", "content": value["question"]}])
        else:
            messages = read_messages(where, value.get("messages"))
        if messages[-1].role != "user":
            raise DataError(f"{where}: the last message must be the user's, it is the {messages[-1].role}'s")
        if value.get("fact") not in facts:
            raise DataError(f"{where}: fact is {value.get('fact')!r}, which no file of facts has")
        cases.append(Case(tuple(messages), value["fact"]))
    if not cases:
        raise DataError(f"{path}: no test questions")
    return cases


def score(cases: Iterable[Case], answer: Answer, facts: dict[str, Fact]) -> Score:
    """Ask everything once."""
    right, count = Counter[bool](), Counter[bool]()
    misses = []
    for case in cases:
        said = answer(case.messages)
        good = carries(said, facts[case.fact].keys)
        count[case.fact == UNKNOWN] += 1
        right[case.fact == UNKNOWN] += good
        if not good:
            misses.append(Miss(case, said))
    return Score((right[False], count[False]), (right[True], count[True]), tuple(misses))


class Retrieval:
    """The baseline: the answer of the training question with the highest tf-idf cosine to the last message.

    A bag of lower-cased words; idf = log(N / number of questions with the word), so a word that all share
    counts nothing; the first of equals wins, and a question without a known word gets the answer for
    "unknown".
    """

    def __init__(self, facts: Sequence[Fact], fallback: str) -> None:
        pairs = [(Counter(words(question)), fact.answer) for fact in facts for question in fact.questions]
        self.answers = [answer for _, answer in pairs]
        self.fallback = fallback
        seen = Counter(word for bag, _ in pairs for word in bag)
        self.idf = {word: math.log(len(pairs) / count) for word, count in seen.items()}
        self.index: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, (bag, _) in enumerate(pairs):
            for word, weight in self._weights(bag).items():
                self.index[word].append((number, weight))

    def __call__(self, messages: Sequence[Message]) -> str:
        similarity: dict[int, float] = defaultdict(float)
        for word, weight in self._weights(Counter(words(messages[-1].content))).items():
            for number, other in self.index.get(word, ()):
                similarity[number] += weight * other
        if not similarity:
            return self.fallback
        return self.answers[max(similarity, key=lambda number: (similarity[number], -number))]

    def _weights(self, bag: Counter[str]) -> dict[str, float]:
        """tf × idf of the known words, of length 1."""
        raw = {word: count * self.idf[word] for word, count in bag.items() if self.idf.get(word)}
        norm = math.sqrt(sum(value * value for value in raw.values()))
        return {word: value / norm for word, value in raw.items()}


def words(text: str) -> list[str]:
    """Lower-cased runs of letters, digits and underscores."""
    return re.findall(r"\w+", text.lower())


def model_answers(
    model: Decoder,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    defaults: GenerationDefaults,
    seed: int | None,
) -> Answer:
    """The checkpoint as a function from conversation to the first line it says.

    Args:
        seed: None is greedy; otherwise the checkpoint's own sampling policy under that seed.
    """
    ends = frozenset(i for i in range(tokenizer.vocab_size) if b"\n" in tokenizer.token_bytes(i))
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, stop_token_ids=ends)
    if seed is not None:
        params = replace(
            params, temperature=defaults.temperature, top_k=defaults.top_k, top_p=defaults.top_p, seed=seed
        )

    room = model.config.num_positions - 1  # a longer conversation loses its oldest turns

    def answer(messages: Sequence[Message]) -> str:
        prompt, _ = drop_oldest(tokenizer, template, messages, room)
        ids, _ = generate_cached(model, prompt, params)
        return tokenizer.decode(ids).split("\n")[0].strip()

    return answer


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score a checkpoint's answers.")
    parser.add_argument("--checkpoint", default="checkpoints/causette", help="default %(default)s")
    parser.add_argument(
        "--data", default="checkpoints/data/test.jsonl", help="test questions (default %(default)s)"
    )
    parser.add_argument(
        "--facts", default="checkpoints/data/facts", help="folder of facts (default %(default)s)"
    )
    parser.add_argument(
        "--phrasings", default="checkpoints/data/phrasings", help="folder of further questions, may be absent"
    )
    parser.add_argument(
        "--unknown", default="checkpoints/data/unknown.jsonl", help="questions outside the domain"
    )
    parser.add_argument(
        "--sampled", action="store_true", help="draw with the checkpoint's policy, three seeds"
    )
    parser.add_argument("--verbose", action="store_true", help="print every miss")
    return run_command(parser, _evaluate, argv)


def _evaluate(options: argparse.Namespace) -> int:
    outside = read_unknown(options.unknown)
    known = add_phrasings([*read_facts(options.facts), outside], options.phrasings)
    facts = {fact.id: fact for fact in known}
    cases = read_cases(options.data, facts)
    baseline = score(cases, Retrieval(known, outside.answer), facts)
    checkpoint = open_checkpoint(options.checkpoint)
    model = load_model(checkpoint, torch.device("cpu"), torch.float32)
    seeds: Sequence[int | None] = SAMPLED_SEEDS if options.sampled else (None,)
    runs = [
        score(
            cases,
            model_answers(model, checkpoint.tokenizer, checkpoint.template, checkpoint.defaults, s),
            facts,
        )
        for s in seeds
    ]
    if options.verbose:
        _print_misses(runs, facts)
    names = [checkpoint.name if s is None else f"{checkpoint.name}, seed {s}" for s in seeds]
    for name, result in zip([*names, "retrieval baseline"], [*runs, baseline], strict=True):
        parts = {"all": result.all, "in domain": result.in_domain, "unknown": result.unknown}
        print(f"{name:28}" + "  ".join(_part(part, *numbers) for part, numbers in parts.items()))
    summary = {
        "checkpoint": checkpoint.name,
        "digest": checkpoint.digest,
        "questions": len(cases),
        "sampled": options.sampled,
        "model": _mean([run.shares() for run in runs]),
        "baseline": baseline.shares(),
    }
    print(json.dumps(summary))
    return 0


def _part(name: str, right: int, count: int) -> str:
    return f"{name} {right}/{count}" + (f" = {right / count:.1%}" if count else "")


def _mean(shares: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Shares averaged over runs."""
    columns = {name: [run[name] for run in shares] for name in shares[0]}
    return {
        name: None if None in values else round(sum(v for v in values if v is not None) / len(values), 4)
        for name, values in columns.items()
    }


def _print_misses(runs: Sequence[Score], facts: dict[str, Fact]) -> None:
    for run in runs:
        for miss in run.misses:
            print(f"[{miss.case.fact}] {miss.case.question}")
            print(f"    said      {miss.answer}")
            print(f"    expected  {facts[miss.case.fact].answer}")


if __name__ == "__main__":
    sys.exit(main())
