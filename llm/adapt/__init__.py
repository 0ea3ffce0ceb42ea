"""What changes a network's weights without changing the network: quantisation, and later adapters."""
