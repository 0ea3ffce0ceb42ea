"""Templates nobody has read, run in a closed room: what they may name is listed, what they do is paid for."""
