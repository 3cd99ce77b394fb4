"""Policies judged from logged data alone: off-policy evaluation."""
