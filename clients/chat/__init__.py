"""A conversation in the terminal, with any server that speaks OpenAI's API: the course's loop, grown up.

    screen   safe_text → screen       what may reach a terminal, and how it looks
    server   reply → peer             one answer's chunks read; the server, and the fields it refuses
    state    saved → conversation, stats
    turns    dialogue → commands → loop → __main__

Refuses to know the model: history is kept here and sent whole. The plain loop, in 30 lines, is
`clients/examples/chat_loop.py`; every command and key is in docs/chat.md.
"""
