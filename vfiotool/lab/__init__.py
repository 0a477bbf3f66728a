"""Virtual hardware: kernels, machines and the guests that run commands on them."""
