"""Training, evaluation, checkpoints and reports of a run."""
