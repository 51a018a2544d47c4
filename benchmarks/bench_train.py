"""`python benchmarks/bench_train.py --help`; how the numbers are taken is in README.md beside this file."""

from hashgrid.bench.train import main

if __name__ == "__main__":
    main()
