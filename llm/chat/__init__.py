"""Conversations: messages to the text a model was trained on, and (later) tool calls back."""
