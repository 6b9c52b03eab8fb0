"""`python -m mdpr`, as torchrun needs it."""

from mdpr.cli import main

if __name__ == "__main__":
    main()
