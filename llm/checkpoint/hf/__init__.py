"""Hugging Face folders: config.json, safetensors or legacy .bin weights, tokenizer.json, a jinja template."""
