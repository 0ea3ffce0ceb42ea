"""The load test's options, and how they say no."""

from __future__ import annotations

import pytest

from clients.bench.options import MIX, fill_in, parse, parse_length, parse_levels, parse_mix, parse_rates
from clients.bench.work import Kind, Length, Level

URL = "http://127.0.0.1:8000"


def test_levels() -> None:
    assert parse_levels("1,4,16", None) == {1: 8, 4: 16, 16: 64}
    assert parse_levels("4,1", "6") == {4: 6, 1: 6}
    assert parse_levels("1,4", "2,3") == {1: 2, 4: 3}


def test_rates() -> None:
    assert parse_rates("0.5,20", None) == [Level(16, rate=0.5), Level(200, rate=20.0)]
    assert parse_rates("2", "9") == [Level(9, rate=2.0)]
    assert [level.name for level in parse_rates("0.5,20", None)] == ["0.5", "20"]


def test_lengths_and_mixtures() -> None:
    assert parse_length("--words", "64") == Length(64, 64) and str(Length(64, 64)) == "64"
    assert parse_length("--words", "16-256") == Length(16, 256) and str(Length(16, 256)) == "16-256"
    assert parse_mix("32:64*3,512:8-16") == [
        Kind(Length(32, 32), Length(64, 64), 3.0),
        Kind(Length(512, 512), Length(8, 16), 1.0),
    ]
    assert len(parse_mix(MIX)) == 3 and parse(["--mix"]).kinds == parse_mix(MIX)


def test_a_url_stands_alone_or_behind_its_flag() -> None:
    assert parse([URL]).url == parse(["--url", URL]).url == URL
    assert parse([]).url == "http://127.0.0.1:8000"


def test_two_servers_meet_more_often() -> None:
    assert (parse([]).rounds, parse(["--against", URL]).rounds) == (3, 5)
    assert parse(["--against", URL, "--rounds", "2"]).rounds == 2


@pytest.mark.parametrize(
    ("argv", "positions", "kind"),
    [
        ([], None, Kind(Length(64), Length(64))),
        ([], 64, Kind(Length(32), Length(32))),
        ([], 8192, Kind(Length(64), Length(64))),
        (["--max-tokens", "9"], 64, Kind(Length(32), Length(9, 9))),
        (["--words", "48"], 8192, Kind(Length(48, 48), Length(64))),
        (["--prompt-tokens", "0", "--max-tokens", "5-7"], 64, Kind(Length(0, 0), Length(5, 7))),
    ],
)
def test_open_lengths_fit_the_model(argv: list[str], positions: int | None, kind: Kind) -> None:
    assert fill_in(parse(argv), positions) == [kind]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--streams", "1,x"], "--streams must be whole numbers from 1 to 1024"),
        (["--streams", "0"], "got '0'"),
        (["--streams", "1025"], "from 1 to 1024"),
        (["--streams", "1,4", "--requests", "1,2,3"], "3 numbers for 2 levels"),
        (["--requests", "100001"], "from 1 to 100000"),
        (["--rate", "0"], "--rate must be numbers above 0, at most 10000"),
        (["--rate", "nan"], "--rate"),
        (["--rate", "1", "--streams", "1"], "two ways"),
        (["--rounds", "0"], "--rounds must be from 1 to 1000, got 0"),
        (["--checkpoint", "x"], "--checkpoint needs --spawn"),
        ([URL, "--url", URL], "URL is given twice"),
        ([URL, "--spawn"], "--spawn"),
        (["--against", URL, "--against-command", "x"], "two ways"),
        (["--against-model", "x"], "--against-model needs --against"),
        (["--against-temperature", "0"], "--against-temperature needs --against"),
        (["--against", URL, "--against-temperature", "3"], "--against-temperature must be from 0 to 2"),
        (["--words", "0"], "--words must be a number from 1 to 1000000, or two as A-B, got '0'"),
        (["--words", "5", "--prompt-tokens", "5"], "two ways"),
        (["--max-tokens", "9-8"], "--max-tokens must be a number"),
        (["--max-tokens", "-1"], "--max-tokens"),
        (["--mix", "5"], "--mix must be PROMPT:REPLY*WEIGHT"),
        (["--mix", "5:5*0"], "--mix"),
        (["--mix", "5:5*nan"], "--mix"),
        (["--mix", "--words", "5"], "--mix says all lengths"),
        (["--temperature", "nan"], "--temperature must be from 0 to 2, got nan"),
        (["--top-p", "0"], "--top-p must be above 0 and at most 1, got 0"),
        (["--top-k", "-2"], "--top-k must be from -1"),
        (["--slo-ttft-ms", "-1"], "--slo-ttft-ms must be at least 0, got -1"),
        (["--timeout", "0"], "--timeout"),
        (["--cached-prefix", "-1"], "--cached-prefix"),
    ],
)
def test_options_that_cannot_be_used(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
