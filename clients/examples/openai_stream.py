"""A streamed reply with the OpenAI SDK: `python clients/examples/openai_stream.py`."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("CAUSERIE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("CAUSERIE_API_KEY", "unused"),
)
stream = client.chat.completions.create(
    model="default",
    messages=[{"role": "user", "content": "what is a token?"}],
    max_tokens=32,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    if chunk.usage:
        print(f"\n{chunk.usage.completion_tokens} tokens")
