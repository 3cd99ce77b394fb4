"""The claims of the analyses."""
