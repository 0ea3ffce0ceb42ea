"""Several streamed replies at once with the OpenAI SDK: `python clients/examples/openai_async.py`.

The server generates them together; each costs little more time than one alone.
"""

import asyncio
import os

from openai import AsyncOpenAI

QUESTIONS = ("what is a token?", "what is a KV cache?", "what does temperature do?")


async def ask(client: AsyncOpenAI, question: str) -> str:
    stream = await client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": question}],
        max_tokens=32,
        stream=True,
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def main() -> None:
    async with AsyncOpenAI(
        base_url=os.environ.get("CAUSERIE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("CAUSERIE_API_KEY", "unused"),
    ) as client:
        replies = await asyncio.gather(*(ask(client, question) for question in QUESTIONS))
    for question, reply in zip(QUESTIONS, replies, strict=True):
        print(f"{question}\n  {reply}")


asyncio.run(main())
