"""`python benchmarks/bench_surface_step.py --help`; how the numbers are taken is in README.md beside this file."""

from hashgrid.bench.surface_step import main

if __name__ == "__main__":
    main()
