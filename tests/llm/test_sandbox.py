"""Templates nobody has read: they write what jinja2 writes, reach nothing, and end."""

from __future__ import annotations

import tracemalloc

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llm.chat.sandbox.filters import FILTERS, TESTS
from llm.chat.sandbox.functions import FUNCTIONS
from llm.chat.sandbox.marked import TRAINED, by_user, flags_of, plain
from llm.chat.sandbox.meter import MAX_DEPTH, Meter, Overrun
from llm.chat.sandbox.program import MAX_REASON_CHARS, MAX_SOURCE_CHARS, SANDBOX, Program
from llm.chat.sandbox.rewrite import MAX_NESTING, MAX_NODES, TemplateFailure

STEPS = 100_000
REFERENCE = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
)
VALUES = {
    "text": "Hello, wörld\n  and <|more|> ",
    "words": ["b", "a", "C", "a"],
    "numbers": [3, 1, 2],
    "table": {"b": 1, "a": [1, "x", None, True], "items": 5},
    "rows": [{"k": "x", "n": 2}, {"k": "y", "n": 1}, {"k": "x", "n": 3}],
    "nothing": None,
}
EXPRESSIONS = """
text | text|trim | text|upper | text|title | text|capitalize | text.strip().split(",") | text[1:4]
text[::-1] | text[0] ~ text[-1] | text[99] | "wör" in text | text.split()[1:] | text|replace("l", "L")
text|length | text.find("w") | text|indent(2) | text|wordcount | text|first | text|last
text|list|length | text|reverse | words|join(", ") | words|sort | words|sort(reverse=true)
words|unique|list | words|map("upper")|join | words|select("equalto", "a")|list
words|reject("in", ["a"])|list | words|first ~ words|last | words|min | words + ["z"] | words * 2
words.index("C") | words.count("a") | words[1:] | words|string | words|max | numbers|sum
numbers|sort|join | numbers|map("string")|list | numbers|reverse|list | numbers|length | 7 // 2 | -7 % 3
2 ** 5 | 7 / 2 | 1 + 2 * 3 | "%s-%02d" % ("x", 3) | "%s" % text | "{} {a}".format(1, a=2) | "a" * 3
3.7|int | "12"|int + 1 | "x"|int(5) | "1.5"|float | 2.567|round(1) | -3|abs | "%s!"|format("hi")
numbers is iterable | table.a | table["a"][1] | table["items"] | table.missing | table.get("q", 4)
table|length | table.keys()|list | table|dictsort | table|items|list | "b" in table | table is mapping
rows|map(attribute="k")|list | rows|selectattr("k", "equalto", "x")|list|length
rows|rejectattr("n", "gt", 1)|list | rows|sum(attribute="n")
rows|sort(attribute="n")|map(attribute="n")|list | rows|join(",", attribute="k") | nothing
nothing is none | missing | missing is defined | missing|default("d") | ""|d("e", true)
1 if missing else 2 | (3 if missing)|string | text is string | 5 is odd | 4 is even | 9 is divisibleby 3
"a" is lower | 1 < 2 <= 2 | 1 == 1.0 | not missing | (1, 2)[0] | {"a": 1}.a | dict(a=1, b=2)
dict([("x", 1)]).x | range(3)|list | range(5)[1:3]|list | [1, [2, ["x"]]] | text is sequence
3 is number | true is boolean | words == ["b"] | words != numbers | "a" < "b" | [1, 2] is in [[1, 2]]
text|e | text|safe | "x"|trim("x") | "1,2"|list | text.splitlines() | text.partition(",")
"aXbX".rsplit("X", 1) | "a".startswith(("a", "b")) | "ab".removeprefix("a")
words|map("replace", "a", "b")|list | 10 is ge 9 | 1.0 ~ true | text.title() | "ß".upper()
""".strip().replace(" | ", "\n")
BLOCKS = [
    "{% for w in words %}{{ loop.index }}/{{ loop.length }}{{ w }}{{ ',' if not loop.last }}{% endfor %}",
    "{% for w in words %}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('x', 'y') }}"
    "{{ loop.changed(w) }}"
    "{{ loop.revindex }}{{ loop.first }}{{ loop.depth }}{% endfor %}",
    "{% for k, v in table.items() %}{{ k }}={{ v }};{% else %}none{% endfor %}",
    "{% for w in words if w != 'a' %}{{ loop.index0 }}{{ w }}{% endfor %}",
    "{% for w in missing %}{{ w }}{% else %}none{% endfor %}{{ nothing|selectattr('k')|list }}",
    "{% for c in text %}{{ c }}.{% endfor %}",
    "{% for w in words %}{% if w == 'a' %}{% continue %}{% elif w == 'C' %}{% break %}{% endif %}"
    "{{ w }}{% endfor %}",
    "{% for row in rows %}{% for k in row %}{{ k }}{{ loop.index }}{% endfor %}{{ loop.index }}\n"
    "{% endfor %}",
    "{% set ns = namespace(n=0, s='') %}{% for w in words %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.s = ns.s ~ w %}{% endfor %}{{ ns.n }}{{ ns.s }}{{ ns.missing }}",
    "{% set x = 1 %}{% for w in words %}{% set x = 2 %}{% endfor %}{{ x }}"
    "{% if true %}{% set x = 3 %}{% endif %}{{ x }}",
    "{% set block %}[{{ text }}]{% endset %}{{ block|length }}{{ block }}",
    "{% set up | upper %}{{ text }}{% endset %}{{ up }}",
    "{% filter upper|trim %}  {{ text }} low{% endfilter %}",
    "{% macro m(a, b='B') %}<{{ a }}{{ b }}{{ varargs }}{{ kwargs }}>{% endmacro %}"
    "{{ m('x') }}{{ m(1, 2, 3, c=4) }}",
    "{% macro m(n) %}{{ n }}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(9) }}",
    "{% macro m() %}({{ caller('q') }}){% endmacro %}{% call(x) m() %}{{ x }}{{ text }}{% endcall %}",
    "{% macro m(text) %}{{ text }}{% endmacro %}{{ m('a') ~ m(text) }}",
    "{% with a = 1, b = text %}{{ a }}{{ b }}{% endwith %}",
    "{% set a, b = 'xy' %}{{ b }}{{ a }}{% set (c, d), e = [[1, 2], 3] %}{{ c }}{{ d }}{{ e }}",
    "{%- if text %}\n  yes\n{%- else %}no{% endif %}\n\n  {# comment #}\n  {% raw %}{{ x }}{% endraw %}  \n",
    "  {% if true %}\n  kept\n  {% endif %}\ntail\n",
    "{{ '\\n\\t\\'é' }}{{ \"a\" 'b' }}",
    "{% for row in rows|sort(attribute='n') %}{{ row.k }}{{ row['n'] }}{% endfor %}",
]


def run(source: str, steps: int = STEPS, **values: object) -> str:
    return Program(source).run(values, Meter(steps))


@pytest.mark.parametrize(
    "source",
    [f"{{{{ {line} }}}}" for line in EXPRESSIONS.split("\n")] + BLOCKS,
)
def test_what_ends_writes_what_jinja2_writes(source: str) -> None:
    expected = REFERENCE.from_string(source).render(VALUES)
    assert run(source, **VALUES) == expected
    marked = run(source, **{**VALUES, "text": by_user(str(VALUES["text"]))})
    assert plain(marked) == expected, "marks change nothing"


def test_plain_json() -> None:
    value = {"b": "<é&>", "a": [1, None, True, 0.5]}
    assert run("{{ v|tojson }}", v=value) == '{"b": "<é&>", "a": [1, null, true, 0.5]}'
    assert run("{{ v|tojson(indent=2) }}", v=[1]) == "[\n  1\n]"
    assert run("{{ v|tojson(separators=(',', ':'), sort_keys=true) }}", v={"b": 1, "a": 2}) == '{"a":2,"b":1}'
    assert run("{{ v|tojson(ensure_ascii=true) }}", v="é") == '"\\u00e9"'


@pytest.mark.parametrize(
    "expression",
    [
        *(
            "text",
            "text|trim",
            "text ~ 'a'",
            "'a' + text + 'b'",
            "text[1:]",
            "text[0] ~ 'a'",
            "text.split('B')|join('-')",
        ),
        *("text|replace('B', 'x')", "text|lower|upper", "'%s|%s' % ('a', text)", "'<{}>'.format(text)"),
        *("text|list|join('.')", "text|reverse", "[text, 'a']|join", "[text]|first ~ 'x'", "text * 2 ~ 'a'"),
        *("{'k': text}.k", "{text: 1}|items|first|first", "dict(k=text)['k']", "[text]|map('trim')|join"),
        *(
            "[text, 'z']|sort|join(',')",
            "[text, 'z']|max ~ text",
            "(text if text else 'no') ~ 'a'",
            "text|string",
        ),
        *(
            "none|default(text, true)",
            "text|title|upper",
            "namespace(t=text).t ~ 'a'",
            "text.partition('B')|join",
        ),
        "[text, text]|unique|join('a')",
    ],
)
def test_who_wrote_a_character_is_known_after_every_operation(expression: str) -> None:
    """The user writes capitals, the template does not."""
    for source in (
        "{{ % }}",
        "a{% set x %}b{{ % }}{% endset %}{{ x }}",
        "{% macro m(q) %}a{{ q }}{% endmacro %}{{ m(%) }}",
        "{% for c in % %}{{ c }}-{% endfor %}",
        "{% filter trim %} a{{ % }} {% endfilter %}",
        "{% set c, d = (%)[-2:] %}{{ d }}{{ c }}",
    ):
        written = source.replace("{%", "{@").replace("%}", "@}").replace("%", expression).replace("@", "%")
        text = run(written, text=by_user("ABCBA"))
        assert flags_of(text) == bytes(char.isupper() for char in text), written
    text = run(f"{{{{ {expression} }}}}", text=by_user("ABCBA"))
    assert any(char.isupper() for char in text)


@pytest.mark.parametrize(
    "expression", ["[text]", "{'a': text}", "[text]|tojson", "text|e", "text|indent", "[text]|string"]
)
def test_what_is_not_followed_counts_as_the_users(expression: str) -> None:
    text = run(f"{{{{ {expression} }}}}", text=by_user("AB"))
    assert flags_of(text) == b"\x01" * len(text)


def test_generation_blocks_are_marked() -> None:
    text = run("a{% generation %}b{{ text }}{% endgeneration %}c", text=by_user("D"))
    assert flags_of(text) == bytes([0, TRAINED, TRAINED | 1, 0])


def growing(start: str, step: str, then: str = "", times: int = 99) -> str:
    """A template that gives n.s a new value again and again."""
    loop = f"{{% for i in range({times}) %}}{{% set n.s = {step} %}}{{% endfor %}}"
    return f"{{% set n = namespace(s={start}) %}}{loop}{then}"


def again(body: str, before: str = "") -> str:
    return before + "{% for i in range(99999) %}" + body + "{% endfor %}"


ENDLESS = {
    "nested ranges": again(again("")),
    "a loop that skips": again("{% for b in range(99999) if false %}{% endfor %}"),
    "a loop that breaks": again("{% for b in range(9) %}{% break %}{% endfor %}"),
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macros without end": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}"
    "{{ m(50) }}",
    "callers without end": "{% macro m() %}{{ caller() }}{% endmacro %}"
    "{% macro n() %}{% call m() %}{{ n() }}{% endcall %}{% endmacro %}{{ n() }}",
    "doubling": growing("'x'", "n.s + n.s"),
    "doubling by ~": growing("'x'", "n.s ~ n.s"),
    "doubling by join": growing("'x'", "[n.s, n.s]|join"),
    "doubling by replace": growing("'x'", "n.s|replace('x', 'xx')"),
    "doubling by format": growing("'x'", "'%s%s' % (n.s, n.s)"),
    "doubling by set": again(
        "{% set t %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = t %}", growing("'x'", "n.s")
    ),
    "doubling a list": growing("[1]", "n.s + n.s"),
    "shared lists, printed": growing("[1]", "[n.s, n.s]", "{{ n.s }}", 50),
    "shared lists, as JSON": growing("[1]", "[n.s, n.s]", "{{ n.s|tojson }}", 50),
    "shared lists, compared": growing("[1]", "[n.s, n.s]", "{{ n.s == [n.s[0], n.s[1]] }}", 50),
    "shared tuples as a key": growing("(1,)", "(n.s, n.s)", "{{ {n.s: 1} }}", 50),
    "shared tuples, unique": growing("(1,)", "(n.s, n.s)", "{{ [n.s]|unique|list }}", 50),
    "a filter that walks": again("{{ range(99999)|select|first }}"),
    "a test that walks": again("{{ 'x' in range(99999) }}"),
    "sorting": again("{{ x|sort|first }}", "{% set x = range(9999)|list %}"),
    "slicing": again("{% set y = x[1:] %}", "{% set x = 'ab' * 99999 %}"),
    "comparing": again("{% if x == x %}{% endif %}", "{% set x = 'ab' * 99999 %}"),
    "much text": again("x" * 9999),
    "much text in a macro": again("{% set y = m() %}", "{% macro m() %}" + "x" * 9999 + "{% endmacro %}"),
    "a wide text": "{{ 'x' * 999999999 }}",
    "a long list": "{{ ([1] * 999999999)|length }}",
    "a large power": "{{ 9 ** 999999 }}",
    "squares": growing("9", "n.s * n.s"),
    "deep JSON with indents": growing("range(9999)|list", "[n.s]", "{{ n.s|tojson(indent=16) }}", 60),
    "deep lists": growing("[]", "[n.s]", "{{ n.s }}"),
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_would_not_end_is_ended(source: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TemplateFailure) as failure:
            run(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert failure.value.overrun
    assert peak < 40e6, f"{peak / 1e6:.0f} MB"


REFUSED = {
    "{{ ''.__class__ ~ 1 }}{{ ''.__class__.__mro__ }}": "unsafe",
    "{{ ''['__class__']['__mro__'] }}": "unsafe",
    "{{ words.__init__.__globals__ }}": "unsafe",
    "{{ [[]]|map(attribute='__class__.__mro__')|list }}": "unsafe",
    "{{ namespace.__init__.__globals__ }}": "unsafe",
    "{{ raise_exception.call('x') }}": "unsafe",
    "{{ raise_exception._operation.__globals__ }}": "unsafe",
    "{{ self.__init__.__globals__ }}": "unsafe",
    "{{ self._TemplateReference__context.environment }}": "no attribute",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}": "no attribute",
    "{% for x in [1] %}{{ loop._iterator.gi_frame }}{% endfor %}": "no attribute",
    "{% set n = namespace() %}{{ n._Namespace__attrs.x }}": "no attribute",
    "{{ cycler.__init__ }}": "'cycler' is undefined",
    "{{ lipsum.__globals__ }}": "'lipsum' is undefined",
    "{{ joiner() }}": "'joiner' is undefined",
    "{{ ''|attr('__class__') }}": "No filter named 'attr'",
    "{{ 'a'|center(999999999) }}": "No filter named 'center'",
    "{{ [1]|random }}": "No filter named 'random'",
    "{{ 'a'.center(999999999) }}": "'center' of 'str' object is unsafe",
    "{{ 'a'.zfill(999999999) }}": "'zfill' of 'str' object is unsafe",
    "{{ '\\t'.expandtabs(999999999) }}": "'expandtabs' of 'str' object is unsafe",
    "{{ 'a'.encode().hex() }}": "'encode' of 'str' object is unsafe",
    "{{ '{a}'.format_map({}) }}": "'format_map' of 'str' object is unsafe",
    "{{ words.append(1) }}": "'append' of 'list' object is unsafe",
    "{{ {}.update(a=1) }}": "'update' of 'dict' object is unsafe",
    "{{ '%999999999d' % 1 }}": "cannot fill in '%999999999d'",
    "{{ '%999999999d'|format(1) }}": "cannot fill in '%999999999d'",
    "{{ '%999999999d' is odd }}": "expected a number, got str",
    "{{ '{:999999999}'.format(1) }}": "cannot fill in the format '999999999'",
    "{{ '{0.__class__}'.format(1) }}": "cannot fill in the field '0.__class__'",
    "{{ 'a'|indent(999999999) }}": "beyond the limit of 100",
    "{{ [1]|tojson(indent=999999999) }}": "indents by at most 16",
    "{{ [1]|tojson(separators=('x' * 99, ':')) }}": "indents by at most 16",
    "{{ 5|round(-999999999) }}": "a precision from -15 to 15",
    "{{ range(999999999) }}": "range has more than 100000 items",
    "{{ range(10**20) }}": "OverflowError",
    "{{ strftime_now('%999999999Y') }}": "cannot write the date",
    "{{ strftime_now('%Y' * 200) }}": "cannot write the date",
    "{{ 'a'.strip('b' * 999) }}": "strip takes at most 256",
    "{{ []|sort(attribute='a.' * 999) }}": "an attribute has at most 200",
    "{{ [-999999999]|map('@tick')|list }}": "No filter named '@tick'",
    "{{ 'a'|map('@generation')|join }}": "No filter named '@generation'",
    "{{ words() }}": "list cannot be called",
    "{{ 'a'() }}": "str cannot be called",
    "{{ missing.a }}": "'missing' is undefined",
    "{{ missing['a'] }}": "'missing' is undefined",
    "{{ missing[1:] }}": "'missing' is undefined",
    "{{ {}.a.b }}": "no attribute 'a'",
    "{{ missing() }}": "'missing' is undefined",
    "{{ 'a' + 1 }}": "can only concatenate str",
    "{{ text + 1 }}": "can only concatenate str",
    "{{ 1 + text }}": "'int' and 'str'",
    "{{ text.nothing.more }}": "'str object' has no attribute 'nothing'",
    "{{ 1 // 0 }}": "ZeroDivisionError",
    "{% for x in 5 %}{% endfor %}": "'int' object is not iterable",
    "{% set a, b = 'x' %}": "not enough values to unpack",
    "{{ {}['a']['b'] }}": "has no attribute 'a'",
    "{{ [{}]|tojson|tojson ~ missing|tojson }}": "not JSON serializable",
}


@pytest.mark.parametrize("source", REFUSED)
def test_what_no_template_may_do(source: str) -> None:
    with pytest.raises(TemplateFailure) as failure:
        run(source, text=by_user("A"), words=[])
    assert REFUSED[source] in str(failure.value)
    assert "\n" not in str(failure.value) and not failure.value.refusal


UNREADABLE = {
    "{% include '/etc/passwd' %}": "line 1: {% include %} is not for chat templates",
    "\n{% import 'os' as os %}": "line 2: {% import %} is not for chat templates",
    "{% from 'os' import path %}": "{% from ... import %} is not for chat templates",
    "{% extends 'base' %}": "{% extends %} is not for chat templates",
    "{% block a %}{% endblock %}": "{% block %} is not for chat templates",
    "{% autoescape true %}{% endautoescape %}": "{% autoescape %} is not for chat templates",
    "{% for x in [] recursive %}{{ loop([]) }}{% endfor %}": "recursive loops are not for chat templates",
    "{{ f(*range(99999)) }}": "* and ** in a call are not for chat templates",
    "{{ f(**{}) }}": "* and ** in a call are not for chat templates",
    "{{ 1e999 }}": "a number is too large",
    "{{ " + "1" * 5000 + " }}": "Exceeds the limit",
    "{% do [].append(1) %}": "unknown tag 'do'",
    "{{ 1 +": "line 1: unexpected 'end of template'",
    "a\n{% if %}": "line 2: Expected an expression",
    "{% for x in [] %}": "Unexpected end of template",
    "{{ x|nosuch }}": "No filter named 'nosuch'",
    "{{ x is nosuch }}": "No test named 'nosuch'",
    "{{ x|@tick }}": "unexpected char '@'",
    "{{ " + "(" * 5000 + " }}": "nested too deeply",
    "{{ " + "(" * 500 + "1" + ")" * 500 + " }}": "nested too deeply",
    "{{ 1" + "+ 1" * 500 + " }}": f"nested more than {MAX_NESTING} deep",
    "{% if x %}" * 300 + "{% endif %}" * 300: "nested too deeply",
    "{% for x in y %}" * 30 + "{% endfor %}" * 30: "too many statically nested blocks",
    "{{ a }}" * MAX_NODES: f"more than {MAX_NODES:,} expressions",
    "x" * (MAX_SOURCE_CHARS + 1): f"the limit is {MAX_SOURCE_CHARS:,}",
    "{% break %}": "SyntaxError",
    "{{ x('a', _loop_vars=1) }}{% for y in x %}{{ x(_loop_vars=1) }}{% endfor %}": "SyntaxError",
}


@pytest.mark.parametrize("source", UNREADABLE, ids=lambda source: source[:40])
def test_what_is_no_chat_template(source: str) -> None:
    with pytest.raises(TemplateFailure) as failure:
        Program(source)
    assert UNREADABLE[source] in str(failure.value)
    assert "\n" not in str(failure.value) and len(str(failure.value)) < 2 * MAX_REASON_CHARS


def test_a_template_says_itself_why_it_refuses() -> None:
    with pytest.raises(TemplateFailure, match="^roles must alternate, not a b \\?$") as failure:
        run("{{ raise_exception('roles must\n alternate, not ' ~ x) }}", x="a\tb \x1b")
    assert failure.value.refusal
    with pytest.raises(TemplateFailure) as failure:
        run("{{ raise_exception('x' * 9999) }}")
    assert str(failure.value) == "x" * MAX_REASON_CHARS


def test_nothing_is_computed_while_a_template_is_compiled() -> None:
    """Constants too are paid for: jinja2 would fold them when nobody counts."""
    program = Program("{{ 'x' * 9999 }}{{ ('x' * 9999)|length }}{{ 9 ** 99 }}{{ 'a' ~ 'b' }}")
    with pytest.raises(TemplateFailure):
        program.run({}, Meter(100))
    assert program.run({}, Meter(5000)).startswith("x" * 9999 + "9999")


def test_one_program_serves_many_renderings() -> None:
    program = Program(
        "{% set ns = namespace(n=0) %}{% for x in xs %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    )
    with pytest.raises(TemplateFailure):
        program.run({"xs": [0] * 9999}, Meter(100))
    assert [program.run({"xs": [0] * n}, Meter(STEPS)) for n in (3, 0, 5)] == ["3", "0", "5"]


def test_the_reference_is_not_changed() -> None:
    """Our tables are our own: other users of jinja2 in this process keep theirs."""
    assert "tojson" in REFERENCE.filters and REFERENCE.filters["tojson"] is not SANDBOX.filters["tojson"]
    assert REFERENCE.from_string("{{ 'a'|center(5) }}").render() == "  a  "


def test_every_filter_test_and_function_pays() -> None:
    """Each entry of the tables is refused to a template that can pay for nothing."""
    for name in FILTERS.keys() - {"first", "last"}:
        if not name.startswith("@"):
            with pytest.raises(TemplateFailure) as failure:
                Program(f"{{{{ [1]|{name} }}}}").run({}, Meter(0))
            assert failure.value.overrun, name
    for name in TESTS:
        with pytest.raises(TemplateFailure) as failure:
            Program(f"{{{{ [1]|select('{name}')|list }}}}").run({}, Meter(0))
        assert failure.value.overrun, name
    for name in FUNCTIONS:
        with pytest.raises(TemplateFailure) as failure:
            Program(f"{{{{ {name}() }}}}").run({}, Meter(0))
        assert failure.value.overrun, name


COSTLY = {
    "{{ x == y }}": {"x": "a" * 9999, "y": "b"},
    "{{ y == x }}": {"x": "a" * 9999, "y": "b"},
    "{{ x in y }}": {"x": "b", "y": ["a" * 99] * 99},
    "{{ x[1:][0] }}": {"x": "a" * 9999},
    "{{ x[::2][0] }}": {"x": [1] * 999},
    "{{ x|first ~ x|length }}{% for i in [1] %}" + "z" * 9999 + "{% endfor %}": {"x": "a"},
    "{% macro m() %}" + "z" * 9999 + "{% endmacro %}{% set y = m() %}{{ x }}": {"x": "a"},
    "{{ x }}": {"x": "a" * 9999},
    "{{ x ~ x }}": {"x": "a" * 4999},
    "{{ {x: 1} }}": {"x": ("a" * 9999,)},
    "{{ x|tojson(indent=16)|length }}": {"x": [[[[[[[[1] * 40]]]]]]]},
    "{{ x|sort|first }}": {"x": [1] * 100},
    "{{ x.count('b') }}": {"x": "a" * 9999},
    "{{ x|indent|length }}": {"x": "\n" * 99},
    "{% for i in x if false %}{% endfor %}": {"x": [1] * 999},
}


@pytest.mark.parametrize("source", COSTLY, ids=lambda source: source[:40])
def test_what_touches_much_costs_much(source: str) -> None:
    """The same on next to nothing costs next to nothing."""
    small = {"x": ("a",) if "{x:" in source else "a", "y": "b"}
    if "zzz" not in source:
        run(source, 80, **small)
    with pytest.raises(TemplateFailure, match="needs more than 400 steps"):
        run(source, 400, **COSTLY[source])


def test_macros_call_each_other_only_so_deep() -> None:
    macro = "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{% endif %}{{ n }}{% endmacro %}"
    assert run(macro + "{{ m(20)|length }}{{ m(20)|length }}") == "3232"
    with pytest.raises(TemplateFailure, match=f"call each other more than {MAX_DEPTH} deep"):
        run(macro + f"{{{{ m({MAX_DEPTH + 1}) }}}}")


def test_a_meter_stays_spent() -> None:
    meter = Meter(10)
    meter.spend(10)
    assert meter.spent == 10
    for _ in range(2):
        with pytest.raises(Overrun, match="^the template needs more than 10 steps$"):
            meter.spend(1)


def test_a_meter_measures_what_is_inside() -> None:
    meter = Meter(1000)
    assert meter.measure("x") == 1
    assert meter.measure([1, {"a": ("b",)}]) == 4
    shared: list[object] = []
    for _ in range(30):
        shared = [shared, shared]
    with pytest.raises(Overrun):
        meter.measure(shared)
    deep: list[object] = []
    for _ in range(MAX_DEPTH):
        deep = [deep]
    with pytest.raises(Overrun, match=f"more than {MAX_DEPTH} deep"):
        Meter(1000).measure(deep)
