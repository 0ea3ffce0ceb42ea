"""The command line of the load test, and what its words mean.

    >>> args = parse(["http://127.0.0.1:8000", "--words", "48", "--max-tokens", "64", "--streams", "1,4,16"])
    >>> args.levels, args.work

Refuses to know what is done with it. A value that cannot be used ends the program with its name and limit.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from clients.bench.work import Kind, Length, Level
from clients.client import DEFAULT_URL, TIMEOUT_SECONDS
from clients.wire import KEY_VARIABLE, key_from_environment

NUM_TOKENS = 64
"""Of a prompt and of a reply, as offline; of a small model at most half of its positions each."""

MIX = "32:64*3,512:32*1,64:256*1"
"""What --mix means alone: short questions, some long documents, some long replies."""

MAX_STREAMS, MAX_REQUESTS, MAX_ROUNDS, MAX_LENGTH = 1024, 100_000, 1000, 1_000_000
MAX_RATE = 10_000.0
RATE_SECONDS, MIN_REQUESTS = 10, 16
"""By default a rate is kept up for so many seconds."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, and made of them `url`, `levels` and `kinds`, which is None while a length is open."""
    parser = argparse.ArgumentParser(description="Measure a server through HTTP, alone or beside another.")
    _add_servers(parser)
    _add_load(parser)
    _add_requests(parser)
    _add_results(parser)
    args = parser.parse_args(argv)
    try:
        _check_servers(args)
        args.levels = _levels(args)
        args.kinds = _kinds(args)
        _check_numbers(args)
    except ValueError as error:
        parser.error(str(error))
    if args.rounds is None:
        args.rounds = 5 if is_contest(args) else 3
    return args


def is_contest(args: argparse.Namespace) -> bool:
    """Whether there is a second server."""
    return args.against is not None or args.against_command is not None


def _add_servers(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("servers").add_argument
    add("url", nargs="?", metavar="URL", help=f"the server (default {DEFAULT_URL})")
    add("--url", dest="named_url", metavar="URL", help="the same")
    add("--spawn", action="store_true", help="start a server, measure it, stop it")
    add("--checkpoint", metavar="PATH", help="what a spawned server serves (default: its own choice)")
    add("--model", help="model id (default: the server's first)")
    add("--api-key", default=key_from_environment(), help=f"bearer token (default: ${KEY_VARIABLE})")
    add("--server-pid", type=int, help="process to read CPU time of (default: the one /health names)")
    add(
        "--against", metavar="URL", help="another server with OpenAI's API: the same load in turn, and ratios"
    )
    add("--against-command", metavar="COMMAND", help="start it; --host and --port are put at the end")
    add("--against-model", metavar="MODEL", help="its model id (default: its first)")
    add("--against-api-key", metavar="KEY", help="its bearer token")
    add("--against-pid", metavar="PID", type=int, help="its process, with children")


def _add_load(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("load").add_argument
    add("--streams", help="requests open at a time, comma-separated levels (default 1,4,16)")
    add("--rate", metavar="R", help="instead: requests per second at random moments (Poisson), levels")
    about = "per level, one number or one each (default: 4 a stream, at least 8; 10 s of a rate, at least 16)"
    add("--requests", metavar="N", help=about)
    add("--rounds", type=int, help="of all levels in turn, medians are printed (default 3; 5 with --against)")
    add("--seed", type=int, default=0, help="of texts, lengths and arrivals (default %(default)s)")
    add("--timeout", type=float, default=TIMEOUT_SECONDS, help="seconds for a request (default %(default)g)")


def _add_requests(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("requests").add_argument
    half = f"default {NUM_TOKENS}, or what half of the model's positions allow"
    add("--words", metavar="N", help="words of a prompt, exactly: N, or A-B for any length between")
    add("--prompt-tokens", metavar="N", help=f"instead: tokens, N or A-B; 0 sends plain questions ({half})")
    add("--max-tokens", metavar="N", help=f"tokens of a reply, N or A-B ({half})")
    mix = "instead: several kinds, PROMPT:REPLY*WEIGHT,… in tokens (--mix alone: {})"
    add("--mix", nargs="?", const=MIX, metavar="KINDS", help=mix.format(MIX))
    add("--cached-prefix", type=int, default=0, metavar="N", help="tokens all prompts of a run begin with")
    add("--temperature", type=float, default=0.0, help="default: 0, greedy, as offline")
    add("--against-temperature", metavar="T", type=float, help="the other server's, to compare two settings")
    add("--top-p", type=float)
    add("--top-k", type=int)


def _add_results(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("results").add_argument
    add("--slo-ttft-ms", type=float, metavar="MS", help="a good request's first token comes in this time")
    add("--slo-gap-ms", type=float, metavar="MS", help="and its tokens after that, on average")
    offline = "JSON line of `causerie bench --offline` to compare with"
    add("--offline", type=Path, metavar="FILE", help=offline)
    add("--json", type=Path, metavar="FILE", help="also write the JSON line to this file")
    add("--png", type=Path, metavar="FILE", help="draw the levels into this file")


def _check_servers(args: argparse.Namespace) -> None:
    if args.url and args.named_url:
        raise ValueError(f"URL is given twice: {args.url} and --url {args.named_url}")
    if args.spawn and (args.url or args.named_url):
        raise ValueError("--spawn starts a server of its own, so a URL cannot be given")
    args.url = args.url or args.named_url or DEFAULT_URL
    if args.checkpoint is not None and not args.spawn:
        raise ValueError("--checkpoint needs --spawn")
    if args.against is not None and args.against_command is not None:
        raise ValueError("--against and --against-command are two ways to name one server")
    for name in ("against_model", "against_api_key", "against_pid", "against_temperature"):
        if getattr(args, name) is not None and not is_contest(args):
            raise ValueError(f"--{name.replace('_', '-')} needs --against or --against-command")


def _levels(args: argparse.Namespace) -> list[Level]:
    if args.rate is not None:
        if args.streams is not None:
            raise ValueError("--streams and --rate are two ways to drive a server: give one")
        return parse_rates(args.rate, args.requests)
    counts = parse_levels(args.streams or "1,4,16", args.requests)
    return [Level(num_requests, streams=streams) for streams, num_requests in counts.items()]


def _kinds(args: argparse.Namespace) -> list[Kind] | None:
    """What is sent; None when a length was left to the model's positions."""
    if args.words is not None and args.prompt_tokens is not None:
        raise ValueError("--words and --prompt-tokens are two ways to say one length")
    if args.mix is not None:
        if args.words is not None or args.prompt_tokens is not None or args.max_tokens is not None:
            raise ValueError(
                "--mix says all lengths: --words, --prompt-tokens and --max-tokens cannot be given"
            )
        return parse_mix(args.mix)
    name, text = (
        ("--words", args.words) if args.words is not None else ("--prompt-tokens", args.prompt_tokens)
    )
    args.prompt = None if text is None else parse_length(name, text, 1 if name == "--words" else 0)
    args.reply = None if args.max_tokens is None else parse_length("--max-tokens", args.max_tokens)
    return None if args.prompt is None or args.reply is None else [Kind(args.prompt, args.reply)]


def fill_in(args: argparse.Namespace, max_model_len: int | None) -> list[Kind]:
    """The kinds of requests, lengths that were not given by the rule of the offline bench."""
    if args.kinds is not None:
        kinds: list[Kind] = args.kinds
        return kinds
    usual = NUM_TOKENS if max_model_len is None else max(1, min(NUM_TOKENS, max_model_len // 2))
    return [Kind(args.prompt or Length(usual), args.reply or Length(usual))]


def _check_numbers(args: argparse.Namespace) -> None:
    bounds = {
        "rounds": (1, MAX_ROUNDS),
        "cached_prefix": (0, MAX_LENGTH),
        "temperature": (0, 2),
        "against_temperature": (0, 2),
        "top_k": (-1, MAX_LENGTH),
        "slo_ttft_ms": (0, float("inf")),
        "slo_gap_ms": (0, float("inf")),
    }
    for name, (least, most) in bounds.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            limit = f"at least {least}" if most == float("inf") else f"from {least} to {most}"
            raise ValueError(f"--{name.replace('_', '-')} must be {limit}, got {value:g}")
    if not 0 < args.timeout < float("inf"):
        raise ValueError(f"--timeout must be a number of seconds above 0, got {args.timeout:g}")
    if args.top_p is not None and not 0 < args.top_p <= 1:
        raise ValueError(f"--top-p must be above 0 and at most 1, got {args.top_p:g}")


def parse_levels(streams: str, requests: str | None) -> dict[int, int]:
    """Requests by number of streams, in the order given; ValueError says what is wrong."""
    levels = _counts("--streams", streams, MAX_STREAMS)
    counts = [max(8, 4 * n) for n in levels] if requests is None else _per_level(requests, len(levels))
    return dict(zip(levels, counts, strict=True))


def parse_rates(rates: str, requests: str | None) -> list[Level]:
    """Levels of so many requests per second; ValueError says what is wrong."""
    try:
        values = [float(part) for part in rates.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value <= MAX_RATE for value in values):
        raise ValueError(f"--rate must be numbers above 0, at most {MAX_RATE:g}, by commas, got {rates!r}")
    usual = [min(MAX_REQUESTS, max(MIN_REQUESTS, int(RATE_SECONDS * value))) for value in values]
    counts = usual if requests is None else _per_level(requests, len(values))
    return [Level(count, rate=value) for value, count in zip(values, counts, strict=True)]


def parse_length(name: str, text: str, least: int = 1) -> Length:
    """ "64" or "16-256"."""
    low, dash, high = text.partition("-")
    if low.isdecimal() and (high.isdecimal() or not dash):
        length = Length(int(low), int(high or low))
        if least <= length.least <= length.most <= MAX_LENGTH:
            return length
    raise ValueError(f"{name} must be a number from {least} to {MAX_LENGTH}, or two as A-B, got {text!r}")


def parse_mix(text: str) -> list[Kind]:
    """ "32:64*3,512:16-32" : kinds of prompt:reply tokens, each with its weight or 1."""
    kinds = []
    for part in text.split(","):
        lengths, star, weight = part.partition("*")
        prompt, colon, reply = lengths.partition(":")
        try:
            share = float(weight) if star else 1.0
        except ValueError:
            share = 0.0
        if not colon or not 0 < share < float("inf"):
            raise ValueError(f"--mix must be PROMPT:REPLY*WEIGHT by commas, as in {MIX}, got {part!r}")
        kinds.append(Kind(parse_length("--mix", prompt, 0), parse_length("--mix", reply), share))
    return kinds


def _per_level(requests: str, num_levels: int) -> list[int]:
    counts = _counts("--requests", requests, MAX_REQUESTS)
    counts = counts * num_levels if len(counts) == 1 else counts
    if len(counts) != num_levels:
        raise ValueError(f"--requests has {len(counts)} numbers for {num_levels} levels")
    return counts


def _counts(flag: str, text: str, most: int) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or not all(1 <= count <= most for count in counts):
        raise ValueError(f"{flag} must be whole numbers from 1 to {most}, by commas, got {text!r}")
    return counts
