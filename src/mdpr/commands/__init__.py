"""What `mdpr` can do: one module a command, each with a click command called `command`, loaded when asked for."""
