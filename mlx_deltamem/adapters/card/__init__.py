"""The model card of an adapter: the README.md of its folder."""
