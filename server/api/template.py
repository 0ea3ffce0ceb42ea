"""POST /apply-template: the prompt proof by hand. Messages in; the exact prompt text and its token ids out.

    $ curl localhost:8000/apply-template -H 'content-type: application/json' \\
        -d '{"messages":[{"role":"user","content":"hello"}]}'
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from server.api.conversation import RenderingFields, encode, to_messages, to_rendering
from server.api.fields import describe, ignored, parse, report
from server.api.shapes import Rendered, ok
from server.api.tools import ToolFields, to_tool_use
from server.body import read_object
from server.registry import registry_of
from server.settings import settings_of

router = APIRouter()


class TemplateRequest(RenderingFields, ToolFields):
    """What is honoured."""

    model: str | None = None


@router.post("/apply-template", openapi_extra=describe(TemplateRequest), responses=ok(Rendered))
async def apply_template(request: Request) -> JSONResponse:
    """Render a conversation as a chat request would, however long it is."""
    settings = settings_of(request)
    asked = parse(TemplateRequest, await read_object(request, settings.max_body_bytes))
    headers = report(ignored(asked, {}), strict=settings.strict)
    model = registry_of(request).get(asked.model)
    rendering = to_rendering(asked, to_tool_use(asked).tools)
    segments = rendering.segments(model, to_messages(asked.messages))
    prompt = "".join(segment.text for segment in segments)
    return JSONResponse({"prompt": prompt, "token_ids": await encode(model, segments)}, headers=headers)
