"""Policies that write: token by token, with a cache while they draw and with gradients where they learn."""
