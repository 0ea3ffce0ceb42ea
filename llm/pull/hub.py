"""A repository on the Hugging Face hub: which of its files a checkpoint needs, with sizes and digests.

    files = choose(list_files("org/repo"))

The hub library makes the requests for the list and the headers, so HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE
mean what they always mean. Every name, size and digest of the answer is checked before use. Takes weights,
tokenizer, template, licence and card by a list of names; never Python files, and pickles only as
`pytorch_model*.bin` where a repository has nothing better. Refuses to know what is inside the files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from llm.checkpoint.record import one_line, some
from llm.errors import PullError
from llm.pull.download import RemoteFile

constants.HF_HUB_DISABLE_TELEMETRY = True  # else the library asks and tells more than a pull needs
TIMEOUT = 30.0
MAX_FILE_BYTES = 1 << 42
SMALL = frozenset(
    (
        "config.json generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json "
        "added_tokens.json vocab.json merges.txt chat_template.jinja chat_template.json "
        "tokenizer.tiktoken samples.jsonl"
    ).split()
)
"""What a checkpoint has beside its weights, under these very names."""
_PAPERS = re.compile(r"(README\.md|(LICEN[CS]E|NOTICE|COPYING)[\w.-]{0,40})")
_WEIGHTS = {
    "model.safetensors": re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors"),
    "pytorch_model.bin": re.compile(r"pytorch_model-(\d{5})-of-(\d{5})\.bin"),
}
"""A file of weights in one piece, or else its shards; the first kind that is there wins."""
_SPLIT_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds at one commit; `files` by path inside the repository, only plausible ones."""

    repo: str
    commit: str
    files: dict[str, RemoteFile]


def list_files(repo: str, revision: str | None = None, endpoint: str | None = None) -> Listing:
    """Ask the hub.

    Args:
        repo: org/name.
        revision: branch, tag or commit; None for the main branch.
        endpoint: the hub's URL; None for HF_ENDPOINT's, else the public one.

    Raises:
        PullError: not there, not allowed, not reachable, or an answer that makes no sense.
    """
    assert REPO.fullmatch(repo), repo
    hub = HfApi(endpoint=endpoint)
    try:
        info = hub.model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
    except Exception as error:  # whatever the library raises for an answer it cannot read
        raise PullError(f"{repo}: {_why(error, revision, hub.endpoint)}") from None
    commit = info.sha
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise PullError(f"{repo}: the hub names no commit")
    headers = build_hf_headers()
    files = {}
    for sibling in info.siblings or []:
        path = sibling.rfilename
        name = path.rsplit("/", 1)[-1] if isinstance(path, str) else ""
        if not _wanted(path, name):
            continue
        size, digest = sibling.size, sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if type(size) is not int or not 0 <= size <= MAX_FILE_BYTES:
            raise PullError(
                f"{repo}: {path}: size must be a whole number up to 2^42, the hub says {size!r:.40}"
            )
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest):
            raise PullError(f"{repo}: {path}: the hub gives no checksum")
        url = hf_hub_url(repo, path, revision=commit, endpoint=endpoint)
        files[path] = RemoteFile(name, url, size, digest, headers)
    return Listing(repo, commit, files)


def _wanted(path: object, name: str) -> bool:
    """A name that some checkpoint needs, and that is safe on any disk; GGUF files in folders too."""
    if not isinstance(path, str) or not _FILE_NAME.fullmatch(name):
        return False
    if name.endswith(".gguf"):
        return all(_FILE_NAME.fullmatch(part) for part in path.split("/"))
    return path == name and (
        name in SMALL
        or _PAPERS.fullmatch(name) is not None
        or name.endswith((".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json"))
    )


def _why(error: Exception, revision: str | None, endpoint: str) -> str:
    """What keeps the hub from answering, in our words."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not asked"
    if isinstance(error, GatedRepoError):
        return "the repository is gated: accept its terms on its page, then set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return f"no revision {revision!r}"
    if isinstance(error, RepositoryNotFoundError):
        return "no such repository, or a private one: set HF_TOKEN if it is yours"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        plain = {401: "no such repository, or HF_TOKEN is not valid for it", 404: "no such repository"}
        return plain.get(status, f"{endpoint} answers HTTP {status}")
    return f"{endpoint} cannot be asked: {one_line(error)}"


def choose(listing: Listing, gguf: str | None = None) -> list[RemoteFile]:
    """The files a checkpoint needs, small ones first.

    Args:
        gguf: path of the one GGUF file to take; None where the repository leaves no choice.

    Raises:
        PullError: no weights, shards missing, or several GGUF files and none named.
    """
    files = listing.files
    papers = [file for path, file in files.items() if _PAPERS.fullmatch(path)]
    if gguf is None and (weights := _whole_weights(listing)):
        chosen = papers + [file for path, file in files.items() if path in SMALL] + weights
    else:
        chosen = [*papers, _one_gguf(listing, gguf)]
    return sorted(chosen, key=lambda file: (file.size, file.name))


def _whole_weights(listing: Listing) -> list[RemoteFile]:
    """The weights that are not GGUF, of the best kind there is."""
    files = listing.files
    for single, shard in _WEIGHTS.items():
        if single in files:
            return [files[single]]
        shards = {path: match for path in files if (match := shard.fullmatch(path))}
        if not shards:
            continue
        count = max(int(match[2]) for match in shards.values())
        if len(shards) != count or {int(match[2]) for match in shards.values()} != {count}:
            raise PullError(f"{listing.repo}: has {len(shards)} of the {count} shards of {single}")
        index = f"{single}.index.json"
        if index not in files:
            raise PullError(f"{listing.repo}: has shards of {single} and no {index}")
        return [files[index], *(files[path] for path in shards)]
    others = [path for path in files if path.endswith(".safetensors") and not path.startswith("adapter_")]
    return [replace(files[others[0]], name="model.safetensors")] if len(others) == 1 else []


def _one_gguf(listing: Listing, path: str | None) -> RemoteFile:
    repo = listing.repo
    ggufs: Sequence[str] = sorted(name for name in listing.files if name.endswith(".gguf"))
    if path is None and len(ggufs) == 1:
        path = ggufs[0]
    if path is None:
        if ggufs:
            raise PullError(f"{repo}: several GGUF files, name one as {repo}:FILE: {some(ggufs, limit=40)}")
        raise PullError(f"{repo}: no weights: no model.safetensors, no pytorch_model.bin, no GGUF file")
    if path not in ggufs:
        raise PullError(
            f"{repo}: no file {path!r:.100}, there are: {some(ggufs, limit=40) or 'no GGUF files'}"
        )
    if _SPLIT_GGUF.search(path):
        raise PullError(f"{repo}: {path} is one part of several: GGUF files in parts are not read")
    return listing.files[path]
