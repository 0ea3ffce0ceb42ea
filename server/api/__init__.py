"""One file per endpoint, schemas beside the handler, none importing another endpoint.

What they share: `fields` (what happens to a field), `conversation` (messages → prompt), `sampling` (fields →
SamplingParams), `chat_stream` (deltas → chunks).
"""
