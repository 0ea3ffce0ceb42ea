"""What begins with a slash: a table from a name to what it does, and what /help says of it.

A command answers on the screen and returns whether it did what it was asked. Refuses to know keys and lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from clients.chat.dialogue import Dialogue, advice
from clients.chat.safe_text import one_line
from clients.chat.saved import NotLoaded, NotSaved, load, save
from clients.wire import ClientError

UNSET = ("default", "none")
LEAVE = ("/quit", "/exit")
KEYS = """\
Enter sends; Alt-Enter, or a \\ at the line's end, begins another line; //text sends /text
Ctrl-C stops a reply, arrow up brings a line back, Ctrl-R searches, Ctrl-D or /quit leaves"""


class Command(NamedTuple):
    """What it is called with, a line about it, and what it does with what follows its name."""

    usage: str
    about: str
    run: Callable[[Dialogue, str], bool]


def run(dialogue: Dialogue, line: str) -> bool:
    """Do what the line says; whether it could be done."""
    name, *rest = line.split(maxsplit=1)
    command = COMMANDS.get(name)
    if command is None:
        dialogue.screen.complain(f"no command {one_line(name, 40)}: /help lists them, //text sends /text")
        return False
    return command.run(dialogue, "".join(rest))


def _help(dialogue: Dialogue, _: str) -> bool:
    lines = [f"{command.usage:<14} {command.about}" for command in COMMANDS.values()]
    dialogue.screen.note("\n".join([*lines, f"{', '.join(LEAVE):<14} leave", KEYS]))
    return True


def _system(dialogue: Dialogue, text: str) -> bool:
    dialogue.conversation.system = text or None
    dialogue.screen.note("(new system message)" if text else "(the model's own system message)")
    return True


def _model(dialogue: Dialogue, name: str) -> bool:
    peer = dialogue.peer
    if name and peer.model_ids and name not in peer.model_ids:
        known = one_line(", ".join(peer.model_ids))
        dialogue.screen.complain(f"no model {one_line(name, 80)} at {peer.url}; there are: {known}")
        return False
    if name:
        peer.params["model"] = name
    served = one_line(", ".join(peer.model_ids)) or "the server does not say"
    dialogue.screen.note(f"(model {one_line(peer.model or 'default')}; served: {served})")
    return True


def _temperature(dialogue: Dialogue, text: str) -> bool:
    return _number(dialogue, "temperature", text, float, "a number from 0, or default")


def _seed(dialogue: Dialogue, text: str) -> bool:
    return _number(dialogue, "seed", text, int, "a whole number from 0, or default")


def _number(dialogue: Dialogue, name: str, text: str, kind: Callable[[str], float], expected: str) -> bool:
    """Show a parameter, set it, or leave it to the server again."""
    if text in UNSET:
        dialogue.peer.params[name] = None
    elif text:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < 2**63:
            dialogue.screen.complain(f"{name} is {one_line(text, 40)}, expected {expected}")
            return False
        dialogue.peer.params[name] = value
    value_now = dialogue.peer.params.get(name)
    dialogue.screen.note(f"({name} {'as the server chooses' if value_now is None else value_now})")
    return True


def _save(dialogue: Dialogue, path: str) -> bool:
    messages = dialogue.conversation.messages
    if not path or not messages:
        dialogue.screen.complain("/save needs a file name" if not path else "nothing was said: not saved")
        return False
    try:
        save(path, messages)
    except NotSaved as error:
        dialogue.screen.complain(one_line(str(error)))
        return False
    dialogue.screen.note(f"({len(messages)} messages written to {one_line(path)})")
    return True


def _load(dialogue: Dialogue, path: str) -> bool:
    if not path:
        dialogue.screen.complain("/load needs a file name")
        return False
    try:
        messages = load(path)
    except NotLoaded as error:
        dialogue.screen.complain(one_line(str(error)))
        return False
    dialogue.conversation.load(messages)
    dialogue.screen.note(f"({len(messages)} messages read from {one_line(path)}; the conversation is theirs)")
    return True


def _retry(dialogue: Dialogue, _: str) -> bool:
    if dialogue.conversation.asking_again() is None:
        dialogue.screen.complain("nothing was asked yet")
        return False
    params = dialogue.peer.params
    if params.get("temperature") == 0:
        dialogue.screen.note("(temperature 0: expect the same reply)")
    elif params.get("seed") is not None:
        dialogue.screen.note(f"(seed {params['seed']}: expect the same reply; /seed default draws another)")
    dialogue.ask_again()
    return True


def _tokens(dialogue: Dialogue, _: str) -> bool:
    messages = dialogue.conversation.messages
    if not messages:
        dialogue.screen.note("(nothing was said: no tokens)")
        return True
    try:
        count = dialogue.peer.count(messages)
    except ClientError as error:
        dialogue.screen.complain(advice(error))
        return False
    if count is not None:
        limit = "the server does not say of how many" if count.limit is None else f"of {count.limit}"
        dialogue.screen.note(f"({count.num_tokens} tokens {limit}: the conversation as the model reads it)")
        return True
    dialogue.screen.note("(this server has no /tokenize for conversations)")
    dialogue.screen.note(dialogue.stats.lines()[0])
    return True


def _stats(dialogue: Dialogue, _: str) -> bool:
    dialogue.screen.note("\n".join(dialogue.stats.lines()))
    return True


def _reset(dialogue: Dialogue, _: str) -> bool:
    dialogue.conversation.reset()
    dialogue.screen.note("(the conversation is forgotten)")
    return True


COMMANDS = {
    command.usage.split()[0]: command
    for command in (
        Command("/system TEXT", "the system message from the next turn on; none: the model's own", _system),
        Command("/model ID", "who answers from the next turn on; none: say who is there", _model),
        Command("/temp N", "the temperature, 0 is greedy; default: the server's", _temperature),
        Command("/seed N", "same seed, same reply; default: another each time", _seed),
        Command("/retry", "another reply to the last question, or one at last where it failed", _retry),
        Command("/tokens", "how many tokens the conversation is, of how many", _tokens),
        Command("/stats", "of the last reply and the session: first token, tokens/s, tokens", _stats),
        Command("/save FILE", "write the conversation as chat JSONL, which `train sft` reads", _save),
        Command("/load FILE", "go on with a conversation that /save wrote", _load),
        Command("/reset", "forget the conversation, keep the system message", _reset),
        Command("/help", "this", _help),
    )
}
"""In the order that /help lists them."""
