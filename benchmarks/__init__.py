"""Side-by-side measurements: `python -m benchmarks.NAME` prints a table, with --json one object and nothing else."""
