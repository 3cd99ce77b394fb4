"""What is acted in: the batched protocol of environments, adapters for gymnax, Gymnasium and EnvPool, and probes with known values."""
