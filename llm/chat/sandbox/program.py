"""Jinja for templates nobody has read: compiled, but closed, counted and marked.

jinja2's immutable sandbox keeps a template from Python's insides; it does not keep it from running for ever
or filling the memory. So what a template may name is listed, not forbidden (filters.py, functions.py and
strings.py), no other file can be included, and the parsed template is rewritten to pay for what it does
(rewrite.py). Text keeps its marks (marked.py) through all of it. What a template that stays
within its budget writes is what jinja2 writes. Refuses to know messages and tokens.

    >>> program = Program("{% for x in items %}{{ x|upper }}{% endfor %}")
    >>> program.run({"items": ["a", "b"]}, Meter(1000))
    'AB'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError, Undefined, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from llm.chat.sandbox import marked
from llm.chat.sandbox.filters import FILTERS, METER, TESTS, meter_of
from llm.chat.sandbox.functions import DICT_METHODS, FUNCTIONS, LIST_METHODS, TUPLE_METHODS, Refusal
from llm.chat.sandbox.meter import Meter, Overrun
from llm.chat.sandbox.rewrite import Rewriter, TemplateFailure, check
from llm.chat.sandbox.strings import METHODS, OPERATORS, Operation

MAX_SOURCE_CHARS = 1 << 18
MAX_REASON_CHARS = 200
_LOOP_FACTS = frozenset(
    ("index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0")
) | {"previtem", "nextitem"}
_METHODS: tuple[tuple[type, Mapping[str, Operation]], ...] = (
    (str, METHODS),
    (dict, DICT_METHODS),
    (list, LIST_METHODS),
    (tuple, TUPLE_METHODS),
)
_SUBSCRIPTED = (str, dict, list, tuple, range)
_SUBSCRIPTS = (str, int, float, type(None))
_NOTHING = object()
_ORDINARY = (ArithmeticError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError)


def _changed(meter: Meter, loop: LoopContext, *values: object) -> bool:
    meter.measure(values)
    return loop.changed(*values)


_LOOP_METHODS: dict[str, Operation] = {
    "cycle": lambda _, loop, *values: loop.cycle(*values),
    "changed": _changed,
}


class Bound:
    """A method of a value, or a global function, before it is called."""

    __slots__ = ("_operation", "_owner")

    def __init__(self, operation: Operation, *owner: object) -> None:
        self._operation = operation
        self._owner = owner

    def call(self, meter: Meter, /, *args: object, **kwargs: object) -> Any:
        return self._operation(meter, *self._owner, *args, **kwargs)


class Generation(Extension):
    """{% generation %}…{% endgeneration %}: what is between is what the model writes."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        mark = nodes.Filter(None, "@generation", [], [], None, None)
        return nodes.FilterBlock(body, mark).set_lineno(line)


class Sandbox(ImmutableSandboxedEnvironment):
    """What a template can reach, and what it pays. One for all templates: it holds no state."""

    intercepted_binops = frozenset(OPERATORS)
    intercepted_unops = frozenset("+-")
    concat = staticmethod(marked.join)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[LoopControlExtension, Generation],
        )
        self.filters = dict(FILTERS)
        self.tests = dict(TESTS)
        self.globals = {name: Bound(function) for name, function in FUNCTIONS.items()}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`: what is listed for its type, or a key of a dict."""
        found = self._listed(obj, attribute)
        if found is _NOTHING and isinstance(obj, dict) and not hasattr(dict, attribute):
            found = obj.get(attribute, _NOTHING)
        return self._absent(obj, attribute) if found is _NOTHING else found

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`: an element, else as `obj.argument`."""
        if isinstance(obj, _SUBSCRIPTED) and isinstance(argument, _SUBSCRIPTS):
            try:
                return obj[argument]  # type: ignore[index]
            except (TypeError, LookupError):
                pass
        found = self._listed(obj, marked.plain(argument)) if isinstance(argument, str) else _NOTHING
        return self._absent(obj, argument) if found is _NOTHING else found

    def _listed(self, obj: Any, name: str) -> Any:
        """What the name means for a value of this type, or _NOTHING."""
        for kind, methods in _METHODS:
            if isinstance(obj, kind):
                return Bound(methods[name], obj) if name in methods else _NOTHING
        if isinstance(obj, LoopContext):
            if name in _LOOP_FACTS:
                return getattr(obj, name)
            return Bound(_LOOP_METHODS[name], obj) if name in _LOOP_METHODS else _NOTHING
        if isinstance(obj, Namespace) and not name.startswith("_"):
            return getattr(obj, name, _NOTHING)
        return _NOTHING

    def _absent(self, obj: Any, name: Any) -> Undefined:
        if isinstance(obj, Undefined):
            obj._fail_with_undefined_error()
        if isinstance(obj, str):
            obj = marked.plain(obj)
        if isinstance(name, str) and hasattr(type(obj), name):
            return self.unsafe_undefined(obj, name)
        return self.undefined(obj=obj, name=name)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """`obj(...)`: a macro, or what `_listed` found."""
        meter = meter_of(context)
        meter.spend(1)
        if isinstance(obj, Bound):
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return obj.call(meter, *args, **kwargs)
        if isinstance(obj, Macro):
            meter.enter()
            try:
                return context.call(obj, *args, **kwargs)
            finally:
                meter.leave()
        if isinstance(obj, Undefined):
            obj._fail_with_undefined_error()
        raise SecurityError(f"{type(obj).__name__} cannot be called")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = meter_of(context)
        meter.spend(1)
        return OPERATORS[operator](meter, left, right)


SANDBOX = Sandbox()


class Program:
    """A compiled template.

    Args:
        source: the template's text, at most MAX_SOURCE_CHARS.

    Attributes:
        names: every variable it mentions.

    Raises:
        TemplateFailure: not a template, or not one for chats.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateFailure(f"{len(source):,} characters, the limit is {MAX_SOURCE_CHARS:,}")
        try:
            tree = SANDBOX.parse(source)
            check(tree)
            self.names = frozenset(node.name for node in tree.find_all(nodes.Name))
            Rewriter().visit(tree)
            tree.set_environment(SANDBOX)
            self._template = SANDBOX.from_string(tree)
        except TemplateFailure:
            raise
        except TemplateSyntaxError as error:
            raise TemplateFailure(f"line {error.lineno}: {_reason(error.message or '')}") from None
        except (RecursionError, MemoryError):
            raise TemplateFailure("nested too deeply") from None
        except Exception as error:  # jinja2 and Python's compiler, on whatever a file may hold
            raise TemplateFailure(f"{type(error).__name__}: {_reason(error)}") from None

    def run(self, values: Mapping[str, object], meter: Meter) -> str:
        """What the template writes, with marks if any value has some.

        Args:
            values: variables; texts, numbers, lists and dicts only.
            meter: a new one, what this rendering may spend.

        Raises:
            TemplateFailure: it refused, failed or did not end.
        """
        context = self._template.new_context({**values, METER: meter})
        try:
            return marked.join(self._template.root_render_func(context))
        except Refusal as error:
            raise TemplateFailure(_reason(error), refusal=True) from None
        except Overrun as error:
            raise TemplateFailure(_reason(error), overrun=True) from None
        except (RecursionError, MemoryError):
            raise TemplateFailure("it nests too deeply", overrun=True) from None
        except TemplateError as error:
            raise TemplateFailure(_reason(error)) from None
        except _ORDINARY as error:
            raise TemplateFailure(f"{type(error).__name__}: {_reason(error)}") from None


def _reason(error: object) -> str:
    """The first MAX_REASON_CHARS printable characters, on one line."""
    words = " ".join(str(error)[: 4 * MAX_REASON_CHARS].split())
    return "".join(char if char.isprintable() else "?" for char in words)[:MAX_REASON_CHARS]
