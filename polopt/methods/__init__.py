"""The catalogue: a folder a family, a file a paper."""
