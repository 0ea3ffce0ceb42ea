"""What is served, as OpenAI's SDKs list it."""

from __future__ import annotations

import pytest

from tests.fakes import ScriptedModel
from tests.server.wire import app_of, call

CARD = {
    "id": "scripted",
    "object": "model",
    "created": 1700000000,
    "owned_by": "causerie",
    "max_model_len": 512,
    "checkpoint": "scripted.pt",
    "default_sampling": {
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 40,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": None,
        "stop": ["\n"],
    },
}


def test_the_list_and_one_of_it() -> None:
    app = app_of(ScriptedModel(), ScriptedModel(name="org/other"))
    listed = call(app, "/v1/models").json
    assert listed["object"] == "list" and listed["data"][0] == CARD
    assert [card["id"] for card in listed["data"]] == ["scripted", "org/other"]
    assert call(app, "/v1/models/scripted").json == CARD
    assert call(app, "/v1/models/default").json == CARD
    assert call(app, "/v1/models/org/other").json["id"] == "org/other"


@pytest.mark.parametrize("name", ["nope", "", "org", "scripted/"])
def test_an_unknown_id_is_a_404(name: str) -> None:
    answer = call(app_of(), f"/v1/models/{name}")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
