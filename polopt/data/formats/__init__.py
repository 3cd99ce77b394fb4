"""A file a format: `read` gives the columns by our names and the spaces as far as the file has them, `write` the inverse."""
