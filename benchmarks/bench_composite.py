"""`python benchmarks/bench_composite.py --help`; how the numbers are taken is in README.md beside this file."""

from hashgrid.bench.composite import main

if __name__ == "__main__":
    main()
