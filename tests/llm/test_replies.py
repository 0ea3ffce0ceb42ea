"""What is learned is what is served: every reply stands after the very ids of the prompt it is asked with."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
import pytest
import torch

from llm.chat.chatml import ChatMLTemplate
from llm.chat.jinja import JinjaTemplate
from llm.chat.replies import encode_replies
from llm.chat.template import ChatTemplate, Message, PlainTemplate, ToolCall, encode_prompt
from llm.chat.tools import Tool
from llm.errors import DataError, RequestError
from llm.kv.concat import NoCache
from llm.tokenizer import ByteTokenizer
from llm.train.batches import collate
from llm.train.data import Chat, Example, encode_examples
from llm.train.loss import head_loss
from tests.fakes import tiny_model
from tests.llm.tool_templates import QWEN_25

MARKERS = ("<|im_start|>", "<|im_end|>")


class MarkedBytes(ByteTokenizer):
    """Bytes, and the markers of ChatML as control tokens."""

    vocab_size = 259
    control = MappingProxyType(dict(zip(MARKERS, (257, 258), strict=True)))


MARKED = MarkedBytes()
BARE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
BARE += "{% if add_generation_prompt %}assistant:{% endif %}"
FORGETS = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
GENERATION = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}\
{{ m.content }}<|im_end|>{% endif %}
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TEMPLATES: dict[str, ChatTemplate] = {
    "plain": PlainTemplate("Be brief."),
    "chatml": ChatMLTemplate("Be brief.", MARKERS),
    "chatml as text": ChatMLTemplate("Be brief."),
    "jinja": JinjaTemplate(QWEN_25, control=MARKERS),
    "jinja without markers": JinjaTemplate(BARE),
    "jinja that forgets": JinjaTemplate(FORGETS, control=MARKERS),
    "jinja with generation": JinjaTemplate(GENERATION, control=MARKERS),
}
CHAT = (
    Message("user", "hi"),
    Message("assistant", "hello"),
    Message("user", "a?"),
    Message("assistant", "b c"),
)
WEATHER = Tool("weather", "of a place", {"type": "object", "properties": {"place": {"type": "string"}}})
CALLING = (
    Message("user", "Rain in Oslo?"),
    Message("assistant", "", (ToolCall("call_1", "weather", '{"place": "Oslo"}'),)),
    Message("tool", "no", tool_call_id="call_1"),
    Message("assistant", "No."),
)


def examples_of(
    template: ChatTemplate, messages: Sequence[Message] = CHAT, tools: tuple[Tool, ...] = ()
) -> list[Example]:
    return encode_examples(MARKED, template, Chat("chat.jsonl:1", tuple(messages), tools))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(("messages", "tools"), [(CHAT, ()), (CALLING, (WEATHER,))])
def test_every_reply_is_learned_after_the_prompt_that_is_served(
    name: str, messages: tuple[Message, ...], tools: tuple[Tool, ...]
) -> None:
    template = TEMPLATES[name]
    examples = examples_of(template, messages, tools)
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = encode_prompt(MARKED, template, messages[:i], tools=tools)
        after = [e for e in examples if e.ids[: len(prompt)].tolist() == prompt and e.trained[len(prompt)]]
        assert after, "the ids before the reply are those of the served prompt"
        end = len(prompt) + int(np.argmin(np.append(after[-1].trained[len(prompt) :], False)))
        reply = MARKED.decode(after[-1].ids[len(prompt) : end].tolist())
        said = message.content or '"place": "Oslo"'
        assert said in reply and not after[-1].trained[len(prompt) - 1]


@pytest.mark.parametrize("name", ["jinja", "jinja with generation", "chatml"])
def test_the_marker_that_ends_a_reply_is_learned_and_the_line_break_after_it_is_not(name: str) -> None:
    (example,) = examples_of(TEMPLATES[name])
    learned = example.ids[example.trained].tolist()
    assert learned == [*b"hello", 258, *b"b c", 258]


def test_a_template_that_rewrites_history_becomes_a_stretch_per_reply() -> None:
    examples = examples_of(TEMPLATES["jinja that forgets"])
    texts = [MARKED.decode(e.ids[e.trained].tolist()) for e in examples]
    assert texts == ["<think></think>hello", "<think></think>b c"]
    assert b"<think></think>hello" not in bytes(i for i in examples[1].ids if i < 256)


def test_a_template_whose_reply_is_not_after_its_prompt_is_refused() -> None:
    odd = JinjaTemplate("{% if add_generation_prompt %}now: {% endif %}{{ messages[-1].content }}")
    with pytest.raises(RequestError, match=r"messages\[1\]: .* does not write a reply after the prompt"):
        encode_replies(MARKED, odd, CHAT)


def test_a_refused_conversation_is_named_by_its_line() -> None:
    bad = (CHAT[0], Message("assistant", "", (ToolCall("", "f", "no json"),)))
    with pytest.raises(DataError, match=r"^chat.jsonl:1: messages\[1\].tool_calls\[0\].function.arguments"):
        examples_of(TEMPLATES["plain"], bad)


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_gradient_comes_from_outside_the_replies(name: str) -> None:
    """Through the hidden state that predicts a token the model is not taught, nothing flows back."""
    model = tiny_model(vocab_size=259, num_positions=512)
    for example in examples_of(TEMPLATES[name]):
        batch = collate([example])
        positions = torch.arange(batch.ids.shape[1])
        hidden = model(batch.ids, positions, NoCache()).detach().requires_grad_(True)
        loss = head_loss(model, hidden, batch)
        (grad,) = torch.autograd.grad(loss, hidden)
        assert grad[0].abs().sum(-1).gt(0).tolist() == example.trained[1:].tolist()

        ids = np.where(example.trained, example.ids, (example.ids + 1) % 256)
        other = collate([Example(ids.astype(np.int32), example.trained)])
        assert head_loss(model, hidden, other) == loss, "other targets outside the replies, the same loss"
