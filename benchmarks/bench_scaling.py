"""`python benchmarks/bench_scaling.py --help`; how the numbers are taken is in README.md beside this file."""

from hashgrid.bench.scaling import main

if __name__ == "__main__":
    main()
