"""`causerie eval`: the share of a checkpoint's answers that are right, its perplexity, and another beside it.

    causerie eval                                                    # the default checkpoint's own questions
    causerie eval --checkpoint PATH --data questions.jsonl --score chats.jsonl
    causerie eval --checkpoint PATH --against OTHER --report report.html

Beside questions about facts stands a retrieval baseline: what the same data gives without a network. The last
line is one JSON object, for programs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from llm.errors import OptionError
from llm.eval.cases import Case, Score, grade, names_facts, read_cases
from llm.eval.compare import Comparison, Findings, Terms, compare, examine
from llm.eval.passages import read_passages
from llm.eval.report import check_path, write_report
from llm.eval.retrieval import Retrieval
from llm.hardware import usable_cores
from llm.likelihood import Likelihood
from llm.runner.native.weights import Quantization
from llm.train.facts import Fact, add_phrasings, read_facts, read_unknown
from llm.train.options import run_command

DATA = "checkpoints/data/test.jsonl"
MAX_TOKENS = 60
MOST_TOKENS = 1 << 16
SAMPLED_SEEDS = (1, 2, 3)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; exit status 2 for an option, a file or a checkpoint that cannot be used."""
    parser = argparse.ArgumentParser(description="Score a checkpoint's answers, alone or beside another's.")
    add = parser.add_argument
    add("--checkpoint", default="checkpoints/causette", help="default %(default)s")
    add("--against", help="another checkpoint: the same questions, seeds and texts")
    add("--report", type=Path, help="with --against: a page to write, .md or .html")
    add("--data", help=f"test questions (default {DATA}, with --score none)")
    add("--score", help="chats or texts, JSONL: perplexity, of chats the assistant's words alone")
    add("--facts", default="checkpoints/data/facts", help="folder of facts (default %(default)s)")
    add(
        "--phrasings",
        nargs="+",
        default=["checkpoints/data/phrasings", "checkpoints/data/wordings"],
        help="folders of further questions, may be absent",
    )
    add("--unknown", default="checkpoints/data/unknown.jsonl", help="questions outside the domain")
    add("--sampled", action="store_true", help="draw with the checkpoint's policy, three seeds")
    add("--max-tokens", type=int, default=MAX_TOKENS, help="of an answer (default %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default %(default)s)")
    add(
        "--quantization",
        choices=get_args(Quantization),
        default="none",
        help="none computes with the weights as they are, auto as a server would (default %(default)s)",
    )
    add("--threads", type=int, help="default: every usable core")
    add("--verbose", action="store_true", help="print every miss")
    return run_command(parser, _evaluate, argv)


def _evaluate(options: argparse.Namespace) -> int:
    _check(options)
    data = DATA if options.data is None and options.score is None else options.data
    known = _read_facts(options) if data is not None and names_facts(data) else []
    facts = {fact.id: fact for fact in known}
    terms = Terms(
        cases=[] if data is None else read_cases(data, facts),
        passages=[] if options.score is None else read_passages(options.score),
        seeds=SAMPLED_SEEDS if options.sampled else (None,),
        max_tokens=options.max_tokens,
        devices=options.device,
        quantization=options.quantization,
        threads=options.threads or usable_cores(),
    )
    paths = [options.checkpoint] if options.against is None else [options.checkpoint, options.against]
    found = [examine(path, terms) for path in paths]
    comparison = compare(found[0], found[1], terms) if len(found) == 2 else None
    if comparison is not None:
        found = [comparison.first, comparison.second]
    baseline = _baseline(terms.cases, known)
    for findings in found:
        _print_findings(findings, terms, verbose=options.verbose)
    if baseline is not None:
        _print_score("retrieval baseline", baseline)
    if comparison is not None and comparison.divergence is not None:
        kl = comparison.divergence
        print(
            f"{'KL per token':27} mean {kl.mean_kl:.4f}  largest {kl.max_kl:.4f}  same choice {kl.top1:.1%}"
        )
    if comparison is not None and options.report is not None:
        write_report(options.report, comparison)
        print(f"report: {options.report}")
    print(json.dumps(_summary(options, terms, found, baseline, comparison)))
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raise an OptionError before anything is loaded."""
    if not 1 <= options.max_tokens <= MOST_TOKENS:
        raise OptionError(f"--max-tokens must be from 1 to {MOST_TOKENS}, got {options.max_tokens}")
    if options.threads is not None and options.threads < 1:
        raise OptionError(f"--threads must be at least 1, got {options.threads}")
    if options.report is not None:
        if options.against is None:
            raise OptionError("--report needs --against: it is of two checkpoints")
        check_path(options.report)


def _read_facts(options: argparse.Namespace) -> list[Fact]:
    """All facts, what lies outside last."""
    return add_phrasings([*read_facts(options.facts), read_unknown(options.unknown)], options.phrasings)


def _baseline(cases: Sequence[Case], known: Sequence[Fact]) -> Score | None:
    """The answers of the nearest training questions, where every question is about a fact."""
    if not cases or not all(case.fact for case in cases):
        return None
    nearest = Retrieval(known, known[-1].answer)
    return grade(cases, [nearest(case.messages) for case in cases])


def _print_findings(findings: Findings, terms: Terms, *, verbose: bool) -> None:
    for seed, score in zip(terms.seeds, findings.scores, strict=False):
        if verbose:
            _print_misses(score)
        _print_score(findings.name if seed is None else f"{findings.name}, seed {seed}", score)
    if terms.passages:
        one = findings.likelihood
        print(
            f"{findings.name:27} perplexity {one.perplexity:.4g}  {one.mean:.4f} nats/token  "
            f"{one.num_tokens} tokens of {len(terms.passages)} texts"
        )


def _print_score(name: str, score: Score) -> None:
    parts = {"all": score.all, "in domain": score.in_domain, "unknown": score.unknown}
    print(f"{name:27} " + "  ".join(_part(part, *numbers) for part, numbers in parts.items()))


def _part(name: str, right: int, count: int) -> str:
    return f"{name} {right}/{count}" + (f" = {right / count:.1%}" if count else "")


def _print_misses(score: Score) -> None:
    for miss in score.misses:
        print(f"[{miss.case.fact or 'expect'}] {miss.case.question}")
        print(f"    said      {miss.answer}")
        print(f"    expected  {miss.case.expected}")


def _summary(
    options: argparse.Namespace,
    terms: Terms,
    found: Sequence[Findings],
    baseline: Score | None,
    comparison: Comparison | None,
) -> dict[str, Any]:
    """What the last line says."""
    first, *others = (_told(one) for one in found)
    return {
        **first,
        "questions": len(terms.cases),
        "sampled": options.sampled,
        "baseline": None if baseline is None else baseline.shares(),
        "against": others[0] if others else None,
        "kl": asdict(comparison.divergence) if comparison and comparison.divergence else None,
    }


def _told(findings: Findings) -> dict[str, Any]:
    return {
        "checkpoint": findings.name,
        "digest": findings.checkpoint.digest,
        "model": _mean([score.shares() for score in findings.scores]),
        "likelihood": _numbers(findings.likelihood) if findings.likelihoods else None,
    }


def _numbers(one: Likelihood) -> dict[str, float]:
    return {
        "nll": one.nll,
        "num_tokens": one.num_tokens,
        "mean": one.mean,
        "perplexity": one.perplexity,
    }


def _mean(shares: Sequence[dict[str, float | None]]) -> dict[str, float | None] | None:
    """Shares averaged over runs; None without any."""
    if not shares:
        return None
    columns = {name: [run[name] for run in shares] for name in shares[0]}
    return {
        name: None if None in values else round(sum(v for v in values if v is not None) / len(values), 4)
        for name, values in columns.items()
    }


if __name__ == "__main__":
    sys.exit(main())
