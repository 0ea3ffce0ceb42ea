"""Who is next: clients take turns, priorities go before turns, nobody is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm.config import SamplingParams
from llm.sequence import Sequence
from llm.waiting import WaitingLine

PARAMS = SamplingParams(max_tokens=1)


def sequence(client: str = "", priority: int = 0) -> Sequence:
    return Sequence([1], PARAMS, client=client, priority=priority)


def line_of(*sequences: Sequence) -> WaitingLine:
    line = WaitingLine()
    for one in sequences:
        line.add(one)
    return line


def order(line: WaitingLine) -> list[Sequence]:
    return [line.pop() for _ in range(len(line))]


def test_one_client_is_served_first_come_first_served() -> None:
    a, b, c = (sequence() for _ in range(3))
    assert order(line_of(a, b, c)) == [a, b, c]


def test_clients_take_turns_whoever_asked_for_more() -> None:
    greedy = [sequence("greedy") for _ in range(4)]
    a, b = sequence("a"), sequence("b")
    assert order(line_of(*greedy, a, b)) == [greedy[0], a, b, *greedy[1:]]


def test_a_client_whose_turn_is_over_waits_for_all_others_also_when_it_comes_again() -> None:
    a1, b1, c1, a2 = sequence("a"), sequence("b"), sequence("c"), sequence("a")
    line = line_of(a1, b1, c1)
    assert line.pop() is a1
    line.add(a2)
    assert order(line) == [b1, c1, a2]


def test_lower_priority_numbers_go_first_whoever_has_the_turn() -> None:
    a, urgent, b, late = sequence("a"), sequence("a", -1), sequence("b"), sequence("b", 5)
    assert order(line_of(late, a, urgent, b)) == [urgent, a, b, late]


def test_who_was_sent_back_goes_before_all_of_its_priority_and_takes_no_turn() -> None:
    a, b, back, urgent = sequence("a"), sequence("b"), sequence("a"), sequence("c", -1)
    line = line_of(a, b)
    line.put_back(back)
    line.add(urgent)
    assert order(line) == [urgent, back, a, b]


def test_a_replacement_stands_where_the_other_stood() -> None:
    a, b, c, other, back, another = (sequence() for _ in range(6))
    line = line_of(a, b, c)
    line.put_back(back)
    line.replace(b, other)
    line.replace(back, another)
    assert b not in line and back not in line
    assert order(line) == [another, a, other, c]


@given(
    st.lists(st.tuples(st.sampled_from(["add", "add", "pop", "leave"]), st.integers(0, 50)), max_size=60),
)
def test_any_coming_and_going_is_a_rota_of_lists(steps: list[tuple[str, int]]) -> None:
    """Against the obvious way: for each priority a list of clients, each with a list; the first is next."""
    line, rotas = WaitingLine(), dict[int, list[tuple[str, list[Sequence]]]]()
    for action, number in steps:
        waiting = [one for rota in rotas.values() for _, own in rota for one in own]
        if action == "add" or not waiting:
            client, priority = "abc"[number % 3], number % 4
            line.add(one := sequence(client, priority))
            rota = rotas.setdefault(priority, [])
            own = next((own for name, own in rota if name == client), None)
            if own is None:
                rota.append((client, [one]))
            else:
                own.append(one)
        elif action == "pop":
            rota = rotas[min(rotas)]
            client, own = rota.pop(0)
            assert line.first() is own[0]
            assert line.pop() is own.pop(0)
            if own:
                rota.append((client, own))
        else:
            one = waiting[number % len(waiting)]
            line.remove(one)
            rota = rotas[one.priority]
            next(own for _, own in rota if one in own).remove(one)
            rotas[one.priority] = [(client, own) for client, own in rota if own]
        rotas = {priority: rota for priority, rota in rotas.items() if rota}
        assert {one.id for one in line} == {one.id for r in rotas.values() for _, own in r for one in own}
