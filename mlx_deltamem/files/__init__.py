"""Atomic and locked files, the user's paths, and JSON records."""
