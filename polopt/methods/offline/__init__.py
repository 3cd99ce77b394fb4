"""Learning from a fixed log, without acting."""
