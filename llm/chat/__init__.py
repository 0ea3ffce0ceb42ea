"""Conversations: messages to the text a model was trained on, and what a reply calls back out of its text."""
