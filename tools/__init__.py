"""Programs for work on this project: `python -m tools.NAME`. They are not part of the wheel."""
