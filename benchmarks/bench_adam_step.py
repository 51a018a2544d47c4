"""`python benchmarks/bench_adam_step.py --help`; how the numbers are taken is in README.md beside this file."""

from hashgrid.bench.adam_step import main

if __name__ == "__main__":
    main()
