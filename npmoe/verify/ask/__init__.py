"""Asking models that are not ours all there is to ask: of PyTorch in `torch`, of JAX in `jax`."""
