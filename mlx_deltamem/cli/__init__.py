"""Parts that commands share: the list of commands, options and errors; and the terminal chat."""
