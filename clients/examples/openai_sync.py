"""A whole reply with the OpenAI SDK: `pip install openai`, then `python clients/examples/openai_sync.py`."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("CAUSERIE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("CAUSERIE_API_KEY", "unused"),
)
completion = client.chat.completions.create(
    model="default",
    messages=[{"role": "user", "content": "what is a token?"}],
    max_tokens=32,
)
print(completion.choices[0].message.content)
print(completion.choices[0].finish_reason, completion.usage)
