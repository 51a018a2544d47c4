"""`python benchmarks/bench_encodings.py --help`; how the numbers are taken is in README.md beside this file."""

from hashgrid.bench.encodings import main

if __name__ == "__main__":
    main()
