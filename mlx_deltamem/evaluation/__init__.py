"""Evaluation: questions about a history, with the history in the text, in the memory, or nowhere."""
