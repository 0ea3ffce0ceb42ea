"""One file per endpoint, schemas beside the handler, none importing another endpoint.

What they share, in the order of a request: `fields` (what happens to a field), `conversation` and `inputs`
(messages, or text and ids → prompt), `sampling` (fields → SamplingParams), `structured` and `tools` (fields →
the grammar of the reply), `chat_delta` and `completion_pieces` (text → what it says), `chat_reply`,
`chat_stream` and `completion_stream` (→ JSON), `reply`, `logprobs` and `timings` (parts of it), `shapes` (the
whole of it, for readers).
"""
