"""The course's chat loop over HTTP: `python -m clients.examples.chat_loop`; /quit leaves."""

import os

from clients.client import Client

client = Client(os.environ.get("CAUSERIE_URL", "http://127.0.0.1:8000"), os.environ.get("CAUSERIE_API_KEY"))
messages: list[dict[str, str]] = []
while True:
    try:
        text = input("User: ").strip()
    except EOFError:
        break
    if text in ("/quit", "/exit"):
        break
    if text == "/reset":
        messages.clear()
        continue
    messages.append({"role": "user", "content": text})
    reply = ""
    print("Assistant: ", end="")
    for chunk in client.stream(messages, truncation="drop_oldest"):
        piece = chunk["choices"][0]["delta"].get("content", "")
        print(piece, end="", flush=True)
        reply += piece
    print()
    messages.append({"role": "assistant", "content": reply})
client.close()
