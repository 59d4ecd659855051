"""A saved model over files too large for memory: its answer, where it looked, and pictures of both."""
