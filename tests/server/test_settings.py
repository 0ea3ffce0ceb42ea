"""Flags over environment over file over defaults, and one clear line for what is wrong."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from llm.config import EngineConfig
from server.settings import Settings, SettingsError, load_settings

RUNNERS_OWN = {"block_size"}
RENAMED = {"num_blocks": "num_gpu_blocks_override"}


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "causerie.yaml"
    file.write_text("port: 1\nhost: file\nmax-num-seqs: 3\nsend_timeout: 4\n")
    monkeypatch.setenv("CAUSERIE_PORT", "2")
    monkeypatch.setenv("CAUSERIE_HOST", "env")
    settings = load_settings(["--config", str(file), "--port=3"])
    assert (settings.port, settings.host, settings.max_num_seqs, settings.send_timeout) == (3, "env", 3, 4.0)
    assert settings.dtype == "auto"


def test_the_file_can_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "causerie.yaml"
    file.write_text("strict: true\n")
    monkeypatch.setenv("CAUSERIE_CONFIG", str(file))
    assert load_settings([]).strict
    assert not load_settings(["--no-strict"]).strict


def test_keys_repeat_split_and_stay_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSERIE_API_KEY", "first,second")
    settings = load_settings([])
    assert [key.get_secret_value() for key in settings.api_key] == ["first", "second"]
    assert "first" not in repr(settings)
    flagged = load_settings(["--api-key", "a", "--api-key=b"])
    assert [key.get_secret_value() for key in flagged.api_key] == ["a", "b"]


def test_how_a_cpu_computes_is_auto_unless_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings([])
    assert {settings.runner, settings.quantization, settings.kv_cache_dtype} == {"auto"}
    monkeypatch.setenv("CAUSERIE_KV_CACHE_DTYPE", "float32")
    settings = load_settings(["--runner", "native", "--quantization=int4"])
    assert (settings.runner, settings.quantization, settings.kv_cache_dtype) == ("native", "int4", "float32")


def test_checkpoints_repeat_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSERIE_CHECKPOINT", "a=x,y.pt")
    assert load_settings([]).checkpoint == ("a=x", "y.pt")
    assert load_settings(["--checkpoint", "p", "--checkpoint=b=q"]).checkpoint == ("p", "b=q")
    file = tmp_path / "causerie.yaml"
    file.write_text("checkpoint: [a=x, y.pt]\n")
    monkeypatch.delenv("CAUSERIE_CHECKPOINT")
    assert load_settings(["--config", str(file)]).checkpoint == ("a=x", "y.pt")


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["--runner", "fast"], "--runner (CAUSERIE_RUNNER): Input should be 'auto', 'native' or 'eager'"),
        (["--quantization", "int2"], "--quantization"),
        (["--kv-cache-dtype", "bfloat16"], "--kv-cache-dtype"),
        (["--prot", "1"], "--prot"),
        (["--por", "1"], "--por"),
        (["stray"], "words without a flag"),
        (["--port", "many"], "--port"),
        (["--port", "65536"], "--port"),
        (["--max-num-seqs", "0"], "--max-num-seqs"),
        (["--keep-alive-interval", "nan"], "--keep-alive-interval"),
        (["--uvicorn-log-level", "loud"], "--uvicorn-log-level"),
        (["--api-key", ""], "--api-key"),
        (["--checkpoint", ""], "--checkpoint"),
        (["--api-key", "two words"], "--api-key"),
        (["--config", "/nowhere.yaml"], "--config /nowhere.yaml"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(argv: list[str], names: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(argv)
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "two words" not in str(caught.value), "a key is never repeated"


@pytest.mark.parametrize("text", ["prot: 1", "- port", "port: [", "config: other.yaml", "1: 2", "\x00"])
def test_a_file_that_is_no_list_of_options_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match="--config") as caught:
        load_settings(["--config", str(file)])
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_no_options(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing yet\n")
    assert load_settings(["--config", str(file)]).port == 8000


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in text


def test_every_field_of_the_engine_is_an_option_with_the_same_default() -> None:
    for field in fields(EngineConfig):
        if field.name not in RUNNERS_OWN:
            option = Settings.model_fields[RENAMED.get(field.name, field.name)]
            assert option.description
            if field.name not in ("max_model_len", "num_speculative_tokens"):  # the model's, the runner's
                assert option.default == field.default
