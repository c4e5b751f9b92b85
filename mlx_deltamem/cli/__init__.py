"""What the commands share: the list of commands, their options and errors, and the terminal chat."""
