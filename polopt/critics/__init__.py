"""What judges: value functions."""
