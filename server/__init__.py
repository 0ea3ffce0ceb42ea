"""The HTTP side of Causerie: OpenAI's API over the model side.

Knows FastAPI, pydantic, sse-starlette and uvicorn; asks `llm` for streams of text and never touches a tensor.
A request's way through this folder: `app` → `auth` → `api/chat` → `sse`; `errors` has every way to end early.
"""

__version__ = "0.1.0"
