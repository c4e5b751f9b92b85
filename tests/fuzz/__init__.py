"""Fuzz targets for the readers of files: `python -m tests.fuzz.run --seconds 30`."""
