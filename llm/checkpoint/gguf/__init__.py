"""GGUF files: header, metadata, tensors in any quantisation, tokenizer and template in one file."""
