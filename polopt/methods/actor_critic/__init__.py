"""Actor-critic and value methods that learn from replay."""
