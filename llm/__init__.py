"""The model side of Causerie: from a checkpoint on disk to streamed text.

Knows torch, numpy and tiktoken; refuses to know HTTP, pydantic and the server.
The files of this folder, in the order of a request, are listed in the README.
"""
