"""What is learnt from: replay."""
