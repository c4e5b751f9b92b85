"""How tables, figures, progress bars and the option `--plot` look in all commands."""
