"""The default checkpoint's facts, refusals and dialogues → chat JSONL, many spellings of each question.

    python -m llm.train.facts chat.jsonl --copies 12

Every fact's question becomes `copies` conversations: the first as written, the others re-worded or reduced
to a few telling words of the fact (phrasing.py), some behind an earlier exchange, some under another system
line. The answer never changes. Same files and seed, same lines, whatever the machine. Refuses to know
tokenizers and models.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm.errors import DataError
from llm.train.data import read_jsonl, read_messages
from llm.train.options import run_command
from llm.train.phrasing import WordBag, vary

BAG_SHARE = 0.3
"""Copies of a question that are a few telling words of its fact instead."""

DIALOGUES = "dialogues.jsonl"
UNKNOWN = "unknown"
UNKNOWN_ANSWER = "I don't know; I only know about language models and this server."
UNKNOWN_KEYS = (("don't know",),)

GREETINGS = (
    ("hello", "Hello! Ask me about language models or about this server."),
    ("hi", "Hello! Ask me about language models or about this server."),
)
SYSTEM_LINES = (
    "You are a helpful assistant.",
    "You answer questions briefly and honestly.",
    "Be concise.",
    "You are a friendly assistant for a language model server.",
    "Answer in one sentence.",
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing the model should know.

    Attributes:
        id: name used by test files.
        answer: the one line it is taught to say.
        keys: every group needs one of its strings in the lower-cased answer.
        questions: phrasings that ask for it.
    """

    id: str
    answer: str
    keys: tuple[tuple[str, ...], ...]
    questions: tuple[str, ...]


def read_facts(folder: str | Path) -> list[Fact]:
    """Facts of every .jsonl file below a folder, in the order of file names.

    Raises:
        DataError: no facts, a field missing or of the wrong type, an id used twice, or keys the answer lacks.
    """
    facts: dict[str, Fact] = {}
    for path in sorted(Path(folder).glob("*.jsonl")):
        for where, value in read_jsonl(path):
            fact = _parse_fact(where, value)
            if fact.id in facts:
                raise DataError(f"{where}: id {fact.id!r} is used twice")
            if not carries(fact.answer, fact.keys):
                raise DataError(f"{where}: the answer does not carry its own keys")
            facts[fact.id] = fact
    if not facts:
        raise DataError(f"{folder}: no facts (.jsonl files) in this folder")
    return list(facts.values())


def _parse_fact(where: str, value: dict[str, Any]) -> Fact:
    for name, kind in (("id", str), ("answer", str), ("keys", list), ("questions", list)):
        if not isinstance(value.get(name), kind) or not value[name]:
            raise DataError(f"{where}: {name} must be a non-empty {'list' if kind is list else 'text'}")
    if not all(
        isinstance(group, list) and group and all(isinstance(k, str) for k in group)
        for group in value["keys"]
    ):
        raise DataError(f"{where}: keys must be a list of lists of text")
    if not all(isinstance(question, str) and question.strip() for question in value["questions"]):
        raise DataError(f"{where}: questions must be a list of text")
    keys = tuple(tuple(key.lower() for key in group) for group in value["keys"])
    return Fact(value["id"], value["answer"], keys, tuple(value["questions"]))


def carries(answer: str, keys: Sequence[Sequence[str]]) -> bool:
    """Whether an answer carries a fact: of every group of keys at least one occurs in it, case aside."""
    lowered = answer.lower()
    return all(any(key in lowered for key in group) for group in keys)


def read_unknown(path: str | Path) -> Fact:
    """The questions that lie outside, as one fact whose answer admits it."""
    questions = []
    for where, value in read_jsonl(path):
        if not isinstance(value.get("question"), str) or not value["question"].strip():
            raise DataError(f"{where}: question must be non-empty text")
        questions.append(value["question"])
    return Fact(UNKNOWN, UNKNOWN_ANSWER, UNKNOWN_KEYS, tuple(questions))


def add_phrasings(facts: Sequence[Fact], folders: Iterable[str | Path]) -> list[Fact]:
    """The same facts with the further questions of folders of {"id", "questions"} lines.

    Raises:
        DataError: an id no fact has, or a line without questions.
    """
    more: dict[str, list[str]] = {fact.id: [] for fact in facts}
    files = [path for folder in folders for path in sorted(Path(folder).glob("*.jsonl"))]
    for path in (path for path in files if path.name != DIALOGUES):
        for where, value in read_jsonl(path):
            questions = value.get("questions")
            if value.get("id") not in more:
                raise DataError(f"{where}: no fact has the id {value.get('id')!r}")
            if not isinstance(questions, list) or not all(
                isinstance(q, str) and q.strip() for q in questions
            ):
                raise DataError(f"{where}: questions must be a list of text")
            more[value["id"]] += questions
    return [replace(fact, questions=(*fact.questions, *more[fact.id])) for fact in facts]


Chat = list[dict[str, str]]


def _turn(question: str, answer: str) -> Chat:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def make_chats(facts: Sequence[Fact], dialogues: Iterable[Chat], copies: int, seed: int) -> list[Chat]:
    """All training conversations, in order of facts; the reader shuffles.

    Args:
        facts: the refusals among them, as one more fact.
        dialogues: whole conversations; their user turns are varied too.
        copies: of each question and dialogue; the first is left as written.
        seed: with a question and the copy's number it fixes the result.
    """
    asked = [(index, question) for index, fact in enumerate(facts) for question in fact.questions]
    pairs = [(question, facts[index].answer) for index, question in asked]
    bag = WordBag([() if fact.id == UNKNOWN else (*fact.questions, fact.answer) for fact in facts])
    chats: list[Chat] = []
    for copy in range(copies):
        for number, (index, question) in enumerate(asked):
            dice = random.Random(f"{seed}/{copy}/{number}/{question}")
            if copy:
                from_bag = facts[index].id != UNKNOWN and dice.random() < BAG_SHARE
                question = bag.draw(index, dice) if from_bag else vary(question, dice)
            chats.append(_make_chat(question, facts[index].answer, copy, pairs, dice))
        for number, dialogue in enumerate(dialogues):
            dice = random.Random(f"{seed}/{copy}/dialogue/{number}")
            chats.append([_vary_turn(turn, dice) if copy else turn for turn in dialogue])
    return chats


def _make_chat(
    question: str, answer: str, copy: int, pairs: Sequence[tuple[str, str]], dice: random.Random
) -> Chat:
    """One conversation: mostly a single exchange, sometimes with history or another system line."""
    chat = _turn(question, answer)
    if copy:
        roll = dice.random()
        if roll < 0.15:
            earlier_question, earlier_answer = dice.choice(pairs)
            chat = _turn(vary(earlier_question, dice), earlier_answer) + chat
        elif roll < 0.2:
            chat = _turn(*dice.choice(GREETINGS)) + chat
        if dice.random() < 0.1:
            chat = [{"role": "system", "content": dice.choice(SYSTEM_LINES)}, *chat]
    return chat


def _vary_turn(turn: dict[str, str], dice: random.Random) -> dict[str, str]:
    if turn["role"] != "user":
        return turn
    return {"role": "user", "content": vary(turn["content"], dice)}


def hold_out(facts: Sequence[Fact], count: int, seed: int) -> tuple[list[Fact], list[tuple[str, str]]]:
    """Keep `count` phrasings of each fact (never the first) away from training.

    Returns:
        The facts with fewer questions, and (question, fact id) of what was kept away.
    """
    kept, held = [], []
    for fact in facts:
        dice = random.Random(f"{seed}/{fact.id}")
        chosen = set(dice.sample(fact.questions[1:], min(count, max(0, len(fact.questions) - 2))))
        held += [(question, fact.id) for question in fact.questions if question in chosen]
        questions = tuple(question for question in fact.questions if question not in chosen)
        kept.append(Fact(fact.id, fact.answer, fact.keys, questions))
    return kept, held


def read_dialogues(path: str | Path) -> list[Chat]:
    """Whole conversations of a chat JSONL file, as they will be written."""
    chats = []
    for where, value in read_jsonl(path):
        messages = read_messages(where, value.get("messages"))
        chats.append([{"role": message.role, "content": message.content} for message in messages])
    return chats


def write_jsonl(path: str | Path, rows: Iterable[object]) -> None:
    """One JSON value per line."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the default checkpoint's training conversations.")
    parser.add_argument("out", type=Path, help="chat JSONL to write")
    parser.add_argument(
        "--data", type=Path, default=Path("checkpoints/data"), help="folder with facts/, unknown.jsonl"
    )
    parser.add_argument(
        "--copies", type=int, default=12, help="conversations per question (default %(default)s)"
    )
    parser.add_argument(
        "--unknown-copies", type=int, default=2, help="times more for questions outside the domain"
    )
    parser.add_argument(
        "--hold-out", type=int, default=0, metavar="N", help="phrasings per fact kept away from OUT"
    )
    parser.add_argument(
        "--held", type=Path, help='where those go, as {"question", "fact"} lines for llm.eval'
    )
    parser.add_argument(
        "--dialogue-copies", type=int, default=1, help="times more for dialogues (default %(default)s)"
    )
    parser.add_argument(
        "--also", nargs="+", default=[], metavar="NAME", help="folders of DATA with further questions"
    )
    parser.add_argument("--seed", type=int, default=1, help="of every random choice (default %(default)s)")
    return run_command(parser, _write, argv)


def _write(options: argparse.Namespace) -> int:
    known, unknown = read_facts(options.data / "facts"), options.data / "unknown.jsonl"
    outside = [read_unknown(unknown)] if unknown.exists() else []
    also = [options.data / name for name in options.also]
    for folder in also:
        if not folder.is_dir():
            raise DataError(f"--also {folder.name}: {options.data} has no such folder")
    both = add_phrasings([*known, *outside], also)
    known, outside = both[: len(known)], both[len(known) :]
    facts, held = hold_out(known, options.hold_out, options.seed)
    outside, more = hold_out(outside, options.hold_out * 20, options.seed)
    held += more
    facts += outside * options.unknown_copies
    files = [folder / DIALOGUES for folder in (options.data, *also)]
    dialogues = [chat for file in files if file.exists() for chat in read_dialogues(file)]
    chats = make_chats(facts, dialogues * options.dialogue_copies, options.copies, options.seed)
    write_jsonl(options.out, [{"messages": chat} for chat in chats])
    if options.held is not None:
        write_jsonl(options.held, [{"question": question, "fact": fact} for question, fact in held])
    print(f"{options.out}: {len(chats)} conversations about {len({fact.id for fact in facts})} facts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
