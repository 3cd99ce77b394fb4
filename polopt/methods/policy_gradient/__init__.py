"""Policy gradients: one on-policy loop, many surrogates, advantages and steps."""
