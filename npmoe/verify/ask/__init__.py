"""What `ask_torch` and `ask_jax` share with each other."""
