"""GET /metrics: what Prometheus reads. docs/metrics.md lists it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.metrics import metrics_of

router = APIRouter()

TEXT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One line for each series.",
        "content": {
            "text/plain": {"schema": {"type": "string"}},
            "application/openmetrics-text": {"schema": {"type": "string"}},
        },
    }
}


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", responses=TEXT, response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus's text format, or OpenMetrics if the Accept header asks for it."""
    body, content_type = metrics_of(request).render(", ".join(request.headers.getlist("accept")))
    return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})
