"""Train an adapter: what is written, what is read, what is minimised, and how a run survives."""
