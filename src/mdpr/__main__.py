"""`python -m mdpr`, as torchrun needs it."""

from mdpr.cli import main

main()
