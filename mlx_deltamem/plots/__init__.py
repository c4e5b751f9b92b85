"""Figures. Their modules need matplotlib, which is an extra: `plots.option` loads them and does without it."""
