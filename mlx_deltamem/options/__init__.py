"""Options of commands: how one is declared as a field of a dataclass, checked, and added to a command line."""
