"""litgpt folders: lit_model.pth and model_config.yaml."""
