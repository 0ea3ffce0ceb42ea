"""Programs that talk to a Causerie server over HTTP: a small client, a terminal chat, a load test, examples.

Nothing here imports the model or the server; whatever speaks OpenAI's API can stand at the other end.
"""
