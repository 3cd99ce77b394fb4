"""What every room may use: parts, spaces and networks."""
