"""Which files of a repository are taken, and that nothing a hub says is believed unread."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from llm.errors import PullError
from llm.pull.hub import Listing, choose, list_files
from tests.web import COMMIT, Web

REPO = "org/repo"
API = f"/api/models/{REPO}"


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as web:
        yield web


def listing(web: Web, *names: str) -> Listing:
    web.host(REPO, {name: name.encode() for name in names})
    return list_files(REPO, endpoint=web.url)


def chosen(web: Web, *names: str, gguf: str | None = None) -> set[str]:
    return {file.name for file in choose(listing(web, *names), gguf)}


def test_a_list_has_sizes_digests_and_addresses_at_one_commit(web: Web) -> None:
    files = listing(web, "config.json", "model.safetensors").files
    assert {path: (file.size, len(file.digest)) for path, file in files.items()} == {
        "config.json": (11, 40),
        "model.safetensors": (17, 64),
    }
    assert files["config.json"].url == f"{web.url}/org/repo/resolve/{COMMIT}/config.json"


def test_a_revision_is_asked_for(web: Web) -> None:
    web.host(REPO, {"config.json": b"{}"}, revision="v1.0")
    assert list_files(REPO, "v1.0", web.url).commit == COMMIT
    assert [path for path, _ in web.seen] == [f"{API}/revision/v1.0"]


def test_weights_tokenizer_template_and_papers_are_taken_and_no_more(web: Web) -> None:
    wanted = {
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
        *("special_tokens_map.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
        *("README.md", "LICENSE", "LICENSE.md", "model.safetensors"),
    }
    unwanted = {
        *("modeling_x.py", "handler.py", "optimizer.pt", "scheduler.pkl", "training_args.bin"),
        *("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "model.onnx", ".gitattributes"),
        *(
            "original/params.json",
            "onnx/config.json",
            "consolidated.safetensors",
            "adapter_model.safetensors",
        ),
    }
    assert chosen(web, *wanted, *unwanted) == wanted


def test_small_files_come_first(web: Web) -> None:
    web.host(REPO, {"model.safetensors": b"w" * 900, "tokenizer.json": b"t" * 50, "config.json": b"{}"})
    names = [file.name for file in choose(list_files(REPO, endpoint=web.url))]
    assert names == ["config.json", "tokenizer.json", "model.safetensors"]


@pytest.mark.parametrize("single", ["model.safetensors", "pytorch_model.bin"])
def test_shards_come_with_their_index_and_all_of_them(web: Web, single: str) -> None:
    stem, end = single.split(".")
    shards = [f"{stem}-0000{n}-of-00003.{end}" for n in (1, 2, 3)]
    index = f"{single}.index.json"
    assert chosen(web, "config.json", index, *shards) == {"config.json", index, *shards}
    with pytest.raises(PullError, match=f"org/repo: has 2 of the 3 shards of {single}"):
        chosen(web, index, *shards[:2])
    with pytest.raises(PullError, match=f"no {index}"):
        chosen(web, *shards)


def test_safetensors_are_preferred_to_pickles_and_one_by_another_name_is_the_one(web: Web) -> None:
    assert "pytorch_model.bin" not in chosen(web, "pytorch_model.bin", "model.safetensors")
    assert chosen(web, "pytorch_model.bin", "config.json") == {"pytorch_model.bin", "config.json"}
    assert chosen(web, "mine.safetensors", "config.json") == {"model.safetensors", "config.json"}


def test_one_gguf_needs_no_choice_and_several_do(web: Web) -> None:
    assert chosen(web, "a.gguf", "config.json", "README.md") == {"a.gguf", "README.md"}
    with pytest.raises(PullError) as caught:
        chosen(web, "a-Q4_0.gguf", "big/a-Q8_0.gguf")
    expected = "org/repo: several GGUF files, name one as org/repo:FILE: a-Q4_0.gguf, big/a-Q8_0.gguf"
    assert str(caught.value) == expected
    assert chosen(web, "a-Q4_0.gguf", "big/a-Q8_0.gguf", gguf="big/a-Q8_0.gguf") == {"a-Q8_0.gguf"}
    assert chosen(web, "a.gguf", "model.safetensors", gguf="a.gguf") == {"a.gguf"}


def test_a_gguf_that_is_not_there_or_in_parts(web: Web) -> None:
    with pytest.raises(PullError, match=r"no file 'b.gguf', there are: a.gguf$"):
        chosen(web, "a.gguf", gguf="b.gguf")
    with pytest.raises(PullError, match="GGUF files in parts are not read"):
        chosen(web, "a-00001-of-00002.gguf", gguf="a-00001-of-00002.gguf")


def test_a_repository_without_weights(web: Web) -> None:
    with pytest.raises(PullError, match="org/repo: no weights"):
        chosen(web, "config.json", "README.md", "weights.pt")


HOSTILE = ("../model.safetensors", "/etc/model.safetensors", "a/../../model.safetensors", "..\\x.gguf")
HOSTILE += ("../x.gguf", "/x.gguf", "a//x.gguf", "./x.gguf", "x\n.gguf", "-x.gguf", ".x.gguf", "C:x.gguf")
HOSTILE += ("LICENSE/../../x", "LICENSE\0", "README.md/", "ｘ.gguf", "x" * 300 + ".gguf")


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_leave_the_folder_are_not_seen(web: Web, name: str) -> None:
    entry = Web.sibling("model.safetensors", b"w") | {"rfilename": name}
    web.files[API] = json.dumps({"id": REPO, "sha": COMMIT, "siblings": [entry]}).encode()
    assert list_files(REPO, endpoint=web.url).files == {}


def damaged(**changes: Any) -> bytes:
    entry = Web.sibling("config.json", b"{}") | changes
    return json.dumps({"id": REPO, "sha": COMMIT, "siblings": [entry]}).encode()


@pytest.mark.parametrize(
    "answer",
    [
        *(damaged(size=size) for size in (-1, "2", None, 2**63, 1.5, True, [])),
        *(damaged(blobId=blob) for blob in (None, "", "../../x", "0" * 41, 7)),
        *(damaged(lfs=lfs) for lfs in ({"sha256": 1, "size": 2, "pointerSize": 3}, 5, [1])),
        *(
            json.dumps({"id": REPO, "sha": sha, "siblings": []}).encode()
            for sha in (None, "main", "../..", 5, COMMIT + "\n")
        ),
        *(
            json.dumps({"id": REPO, "sha": COMMIT, "siblings": items}).encode()
            for items in (5, [5], [{}], "config.json")
        ),
        *(b"", b"{", b"[]", b"null", b"<html>", b"\xff\xfe", b"[" * 200_000, b'{"id": ' * 50_000),
    ],
)
def test_an_answer_that_makes_no_sense_is_one_line(web: Web, answer: bytes) -> None:
    web.files[API] = answer
    with pytest.raises(PullError, match="^org/repo: ") as caught:
        list_files(REPO, endpoint=web.url)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "no such repository, or a private one: set HF_TOKEN if it is yours"),
        (404, "", "no such repository"),
        (401, "RepoNotFound", "no such repository, or a private one: set HF_TOKEN if it is yours"),
        (401, "", "no such repository, or HF_TOKEN is not valid for it"),
        (403, "GatedRepo", "the repository is gated: accept its terms on its page, then set HF_TOKEN"),
        (404, "RevisionNotFound", "no revision None"),
        (500, "", "http://127.0.0.1:[0-9]+ answers HTTP 500"),
    ],
)
def test_what_a_hub_refuses_is_one_line(web: Web, status: int, code: str, message: str) -> None:
    web.status[API] = status
    web.headers = {"X-Error-Code": code} if code else {}
    with pytest.raises(PullError, match=f"^org/repo: {message}$"):
        list_files(REPO, endpoint=web.url)


def test_no_hub_there() -> None:
    with Web() as web:
        pass
    with pytest.raises(PullError, match=f"^org/repo: {web.url} cannot be asked: .*refused"):
        list_files(REPO, endpoint=web.url)
