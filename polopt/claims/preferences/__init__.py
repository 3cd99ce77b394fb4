"""The claims of methods that learn from comparisons."""
