"""Other ways to remember a history, as conditions: the newest text, retrieval, an oracle, and a summary."""
