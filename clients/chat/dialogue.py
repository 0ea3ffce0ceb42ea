"""Turns: a question goes to the server with all that was said, its reply is shown as it comes and kept.

A reply that fails or is stopped before its first word leaves the conversation as it was, and can be asked for
again. Refuses to know commands, keys and where lines come from.
"""

from __future__ import annotations

from clients.chat.conversation import Conversation, Message
from clients.chat.peer import Answer, Peer
from clients.chat.safe_text import one_line, sendable
from clients.chat.screen import Screen
from clients.chat.stats import Stats
from clients.wire import KEY_VARIABLE, ApiError, ClientError, Unreachable

FULL, CLOSED = (429, 503), (401, 403)


class Dialogue:
    """A conversation with one server, on one screen.

    Attributes:
        num_failures: replies that failed.
    """

    def __init__(self, peer: Peer, screen: Screen, system: str | None = None) -> None:
        self.peer = peer
        self.screen = screen
        self.conversation = Conversation(None if system is None else sendable(system))
        self.stats = Stats()
        self.num_failures = 0
        self._ignored_shown = ""

    def ask(self, text: str) -> None:
        """One turn: show the reply to this question as it comes."""
        self._turn(self.conversation.asking(sendable(text)))

    def ask_again(self) -> bool:
        """Another reply to the last question; False when there was none."""
        turns = self.conversation.asking_again()
        if turns is not None:
            self._turn(turns)
        return turns is not None

    def _turn(self, turns: list[Message]) -> None:
        answer: Answer | None = None
        try:
            with self.peer.ask(self.conversation.sent(turns)) as answer:
                self._show(answer)
        except KeyboardInterrupt:
            self._end(turns, answer)
            if not self.screen.is_terminal:
                raise
            self.screen.note("(stopped)")
        except ClientError as error:
            self.conversation.fail(turns)
            self.num_failures += 1
            can_help = self.screen.is_terminal and _may_pass(error)
            self.screen.complain(advice(error) + ("; /retry asks again" if can_help else ""))
        else:
            self._end(turns, answer)
            self._say_how_it_ended(answer)

    def _show(self, answer: Answer) -> None:
        self.screen.begin_reply()
        for piece in answer.pieces():
            self.screen.think(piece.thought)
            self.screen.say(piece.said)
        self.screen.end_line()

    def _end(self, turns: list[Message], answer: Answer | None) -> None:
        """Keep the turns with what was said; a question without a reply would stay in every prompt."""
        text = "" if answer is None else sendable(answer.reply.text)
        if answer is not None:
            self.stats.add(answer.reply)
        if text:
            self.conversation.answer(turns, text)
        else:
            self.conversation.fail(turns)

    def _say_how_it_ended(self, answer: Answer) -> None:
        if answer.num_dropped not in (None, "", "0"):
            dropped = one_line(answer.num_dropped)
            self.screen.note(f"(the model's context is full: the {dropped} oldest messages were left out)")
        if answer.ignored and answer.ignored != self._ignored_shown:
            self._ignored_shown = answer.ignored
            self.screen.note(f"(the server ignores: {one_line(answer.ignored)})")
        if not answer.reply.text:
            self.screen.note("(the reply is empty)")
        elif answer.reply.finish == "length":
            self.screen.note("(cut off: the reply reached its token limit)")


def advice(error: ClientError) -> str:
    """What went wrong, in a line, and what can be done."""
    text = one_line(str(error))
    if isinstance(error, Unreachable):
        text += "; start one with `causerie serve`, or chat with `--checkpoint PATH` to have one started"
    elif isinstance(error, ApiError) and error.status in CLOSED:
        text += f"; a key is given with --api-key or ${KEY_VARIABLE}"
    elif isinstance(error, ApiError) and error.status in FULL and error.retry_after:
        wait = one_line(error.retry_after, 40)
        text += f"; it asks to wait {f'{wait} s' if wait.isdigit() else f'until {wait}'}"
    return text


def _may_pass(error: ClientError) -> bool:
    """Whether the same request may be answered later: not when the server found fault with it."""
    return not isinstance(error, ApiError) or error.status not in range(400, 500) or error.status in FULL
