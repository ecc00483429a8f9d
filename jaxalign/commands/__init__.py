"""One module a command: `add` its parser, and what it calls."""
