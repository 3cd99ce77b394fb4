"""The claims of methods that learn from a log."""
