"""The claims of methods that learn from verifiable rewards."""
