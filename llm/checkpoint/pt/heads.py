"""How many heads a state dict has, when nothing beside it says so.

Two kinds of evidence, both in the file itself:

1. The loss on a paragraph of plain English. With another number of heads than it was trained with, a model
   that knows English forgets it: SmolLM2-135M goes from 3.0 nats per token to 10.2 and more.
2. The sizes of the values' rows and of the columns that read them. Each head finds its own scale, so they
   jump where one head ends and the next begins. That also tells for a model that knows no English, such as
   one fine-tuned on a few thousand dialogues, whose losses on any other text are noise.

The loss decides where the model knows the paragraph, else the sizes if they are clear; else it is a guess,
and a warning. Refuses to know files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.checkpoint.pt.shapes import Network, head_counts, joined
from llm.kv.concat import NoCache
from llm.model import Block, make_norm
from llm.tokenizer import Tokenizer

PARAGRAPH = (
    "The river runs down from the hills and through the old town, where people come to buy bread, read the "
    "paper and talk about the weather. In the summer the children play by the water until it is dark. When "
    "the rain comes, they stay at home and listen to stories about the sea, the ships that sailed on it and "
    "the men and women who never came back."
)
MIN_TOKENS = 16
MARGIN = 0.05
"""Losses, in nats per token, closer than this are equal."""
KNOWS = 0.6
"""A model knows the paragraph when its loss is below this share of a blind guess's, log V."""
CLEAR = 20.0
"""Log-likelihood, in nats, by which one head size must explain the weights' sizes better than any other."""
MAX_WEIGHTS = 1_500_000_000
"""In a larger model no losses are computed: they would take minutes."""

HEAD_ROWS = 4096
"""Of the head, converted at a time."""

Counts = tuple[int, int]
"""Query heads, and key/value heads."""


def settle_heads(network: Network, tokenizer: Tokenizer) -> tuple[Network, list[str]]:
    """Choose among the numbers of heads that fit the shapes, with a note that says what decided.

    Args:
        network: with the usual number of heads.
        tokenizer: the checkpoint's own.

    Returns:
        The network, and a warning when the number is a guess.
    """
    config = network.config
    counts = head_counts(config.width, config.width + 2 * config.num_kv_heads * config.head_dim)
    usual = (config.num_heads, config.num_kv_heads)
    if len(counts) < 2:
        return network, []
    losses = paragraph_losses(network, tokenizer, counts)
    if (best := _lowest(losses, usual, tokenizer.vocab_size)) is not None:
        how = f"lowest loss on a paragraph ({_listed(losses, best)})"
        return _with_heads(network, best, how), []
    unsaid = f"the losses on a paragraph ({_listed(losses, usual)})" if losses else "a loss"
    if (best := _clearest(size_evidence(network, counts))) is not None:
        how = f"from the sizes of the values' weights, which differ from head to head, not from {unsaid}"
        return _with_heads(network, best, how), []
    how = f"chosen from width {config.width}: neither shapes nor weights tell, nor {unsaid}"
    warning = (
        f"the number of heads, {usual[0]}, is a guess: if the answers make no sense, give the right one with "
        f"--n-head ({' or '.join(str(heads) for heads, _ in counts[1:])}?)"
    )
    return _with_heads(network, usual, how), [warning]


def _with_heads(network: Network, counts: Counts, how: str) -> Network:
    config = replace(network.config, num_heads=counts[0], num_kv_heads=counts[1])
    note = f"heads: {config.num_heads} of {config.head_dim}, {how}"
    return replace(
        network,
        config=config,
        notes=[note if text.startswith("heads:") else text for text in network.notes],
    )


def _listed(losses: Mapping[Counts, float], first: Counts) -> str:
    """ "3.21; 8 heads: 5.40, 2 heads: 6.02": the first's, then the others', lowest first."""
    others = sorted((loss, counts[0]) for counts, loss in losses.items() if counts != first)
    words = [f"{heads} head{'s' * (heads > 1)}: {loss:.2f}" for loss, heads in others]
    return f"{losses[first]:.2f}; {', '.join(words)}"


@torch.no_grad()
def paragraph_losses(network: Network, tokenizer: Tokenizer, counts: list[Counts]) -> dict[Counts, float]:
    """Nats per token with each number of heads, in float32; float32 weights are used where they are mapped.

    All candidates walk through the blocks together, so other types are converted one block at a time. Empty
    for a model that is too large, or whose vocabulary can hardly spell the paragraph.
    """
    num_weights = sum(t.numel() for slots in network.parts.values() for t in slots.values())
    ids = torch.tensor(tokenizer.encode(PARAGRAPH)[: network.config.num_positions], dtype=torch.long)  # (T,)
    if num_weights > MAX_WEIGHTS or len(ids) < MIN_TOKENS:
        return {}
    tokens, positions = (network.parts[f"{name}.weight"][None] for name in ("tokens", "positions"))
    start = tokens[ids].float() + positions[: len(ids)].float()  # (T, C)
    streams = dict.fromkeys(counts, start[None])  # (1, T, C) each
    for layer in range(network.config.num_layers):
        weights = _module_weights(network, f"blocks.{layer}.")
        for heads, kv_heads in counts:
            config = replace(network.config, num_heads=heads, num_kv_heads=kv_heads)
            with torch.device("meta"):
                block = Block(config, layer)
            block.load_state_dict(weights, assign=True)
            streams[heads, kv_heads] = block(streams[heads, kv_heads], None, NoCache())
    with torch.device("meta"):
        norm = make_norm(network.config)
    norm.load_state_dict(_module_weights(network, "norm."), assign=True)
    head = network.parts.get("head.weight", {None: tokens})[None]
    return {c: _loss(_logits(norm(stream[0, :-1]), head), ids[1:]) for c, stream in streams.items()}


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    """(T, C) and (V, C) → (T, V). The largest matrix by far: of another type it is converted in stretches."""
    return torch.cat([F.linear(hidden, rows.float()) for rows in torch.split(head, HEAD_ROWS)], dim=-1)


def _module_weights(network: Network, prefix: str) -> dict[str, Tensor]:
    """The parameters under a prefix, without it."""
    return {
        name.removeprefix(prefix): joined(slots).float()
        for name, slots in network.parts.items()
        if name.startswith(prefix)
    }


def _loss(logits: Tensor, targets: Tensor) -> float:
    """Mean over the tokens, (T, V) and (T,); infinite when the weights are not finite."""
    loss = F.cross_entropy(logits, targets).item()
    return loss if math.isfinite(loss) else math.inf


def _lowest(losses: Mapping[Counts, float], usual: Counts, vocab_size: int) -> Counts | None:
    """The number of heads with the lowest loss, if it says something.

    It must be the loss of a model that knows the paragraph, and lower by MARGIN than the usual number's or,
    when it is the usual number, than any other.
    """
    if not losses:
        return None
    best, second, *_ = sorted(losses, key=lambda counts: losses[counts])
    if losses[best] > KNOWS * math.log(vocab_size):
        return None
    return best if losses[second if best == usual else usual] - losses[best] > MARGIN else None


@torch.no_grad()
def size_evidence(network: Network, counts: list[Counts]) -> dict[Counts, float]:
    """How much better "every head has its own size" explains the weights than "all have one", in nats.

    The sizes are the logarithms of the norms of the values' rows and of the output projection's columns,
    normal around each head's mean. Half the difference of the Bayesian information criteria (Schwarz 1978),
    summed over the layers; more heads cost more parameters.
    """
    evidence = dict.fromkeys(counts, 0.0)
    for layer in range(network.config.num_layers):
        block = f"blocks.{layer}.attention"
        qkv, out = network.parts[f"{block}.qkv.weight"], network.parts[f"{block}.out.weight"][None]
        kv_width = network.config.num_kv_heads * network.config.head_dim
        values = qkv["v"] if "v" in qkv else qkv[None][-kv_width:]  # (K·D, C)
        for vectors in (values, out.t()):  # out.t(): (H·D, C)
            sizes = vectors.float().norm(dim=1).double().clamp_min(1e-30).log()
            for heads, kv_heads in counts:
                groups = sizes.view(kv_heads if vectors is values else heads, -1)
                evidence[heads, kv_heads] += _group_evidence(groups)
    return evidence


def _group_evidence(groups: Tensor) -> float:
    """For one vector of sizes in groups (n, D); 0 when it is not finite or all alike."""
    number, (count, _) = groups.numel(), groups.shape
    within = (groups - groups.mean(dim=1, keepdim=True)).square().sum().item()
    total = (groups - groups.mean()).square().sum().item()
    if not (math.isfinite(total) and within > 1e-12 * number):
        return 0.0
    return (number * math.log(total / within) - (count - 1) * math.log(number)) / 2


def _clearest(evidence: Mapping[Counts, float]) -> Counts | None:
    best, second, *_ = sorted(evidence, key=lambda counts: -evidence[counts])
    return best if evidence[best] - max(evidence[second], 0.0) > CLEAR else None
