"""`python benchmarks/bench_sdf_step.py --help`; how the numbers are taken is in README.md beside this file."""

from hashgrid.bench.sdf_step import main

if __name__ == "__main__":
    main()
