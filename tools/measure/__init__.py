"""Programs that measure speed, memory and behaviour; what they print is quoted in the documents."""
