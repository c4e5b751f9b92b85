"""Evaluation: the same questions under several conditions, with the history in the text, in the memory, or left out."""
