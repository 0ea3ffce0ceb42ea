"""Files that training scripts write with torch.save: bare state dicts, wrappers around them, nanoGPT."""
