"""Programs that measure speed, memory and behaviour. README.md quotes their results."""
