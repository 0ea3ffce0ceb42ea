"""Text as it streams: whole characters, no stop string, the same total for any portions."""

from hypothesis import example, given
from hypothesis import strategies as st

from llm.detokenizer import Detokenizer
from llm.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()


def run(
    data: bytes, stop: tuple[str, ...], portions: list[int], *, strip_start: bool = False
) -> tuple[list[str], str | None]:
    machine = Detokenizer(TOKENIZER.token_bytes, stop, strip_start=strip_start)
    out, at = [], 0
    for size in [*portions, len(data)]:
        out.append(machine.feed(data[at : at + size]))
        at += size
    return [*out, machine.flush()], machine.stopped


def expected(text: str, stop: tuple[str, ...]) -> str:
    """The obvious twin: cut the whole text at the earliest stop string."""
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


@given(
    st.text(alphabet="ab\n é🙂U:ser", max_size=30),
    st.lists(st.text(alphabet="ab\nU:ser🙂", min_size=1, max_size=5), max_size=3).map(tuple),
    st.lists(st.integers(0, 4), max_size=20),
)
@example("a\nUser: b", ("\nUser:", "\n"), [1] * 9)
@example("::b:", ("b", ":b:"), [3])
@example("::bx", ("b", ":b:"), [3])
@example("::b", ("b", ":b:"), [1, 1, 1])
def test_any_portions_give_the_text_before_the_first_stop(
    text: str, stop: tuple[str, ...], portions: list[int]
) -> None:
    pieces, matched = run(text.encode(), stop, portions)
    assert "".join(pieces) == expected(text, stop)
    assert (matched is not None) == any(s in text for s in stop)


@given(st.binary(max_size=20), st.lists(st.integers(0, 3), max_size=10))
def test_bytes_that_are_no_text_become_replacement_characters_however_split(
    data: bytes, portions: list[int]
) -> None:
    assert "".join(run(data, (), portions)[0]) == data.decode("utf-8", errors="replace")


def test_an_emoji_over_four_tokens_appears_once_it_is_whole() -> None:
    pieces, _ = run("🙂".encode(), (), [1, 1, 1])
    assert pieces == ["", "", "", "🙂", ""]


def test_only_a_possible_beginning_of_a_stop_is_held() -> None:
    machine = Detokenizer(TOKENIZER.token_bytes, ("\nUser:",))
    assert machine.feed(b"hello") == "hello", "an unambiguous tail is not delayed"
    assert machine.feed(b"\nU") == "", "this could become the stop string"
    assert machine.feed(b"p") == "\nUp", "and now it cannot"
    assert machine.feed(b"\nUs") == ""
    assert machine.flush() == "\nUs", "nothing held is lost at the end"


def test_nothing_leaves_after_a_stop() -> None:
    machine = Detokenizer(TOKENIZER.token_bytes, ("END",))
    assert machine.feed(b"oneENDtwo") == "one"
    assert (machine.feed(b"three"), machine.flush(), machine.stopped) == ("", "", "END")


@given(st.text(alphabet=" \n\tab", max_size=12), st.lists(st.integers(0, 3), max_size=8))
def test_leading_whitespace_is_dropped_and_no_other(text: str, portions: list[int]) -> None:
    pieces, _ = run(text.encode(), (), portions, strip_start=True)
    assert "".join(pieces) == text.lstrip()
