"""The work of the commands, each in the module of its name. A command imports it when its options are parsed."""
