"""Claims of the policy-gradient family."""
