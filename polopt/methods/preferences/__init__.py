"""Learning from comparisons of responses."""
