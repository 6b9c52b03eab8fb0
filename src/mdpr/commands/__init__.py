"""The commands of `mdpr`."""
