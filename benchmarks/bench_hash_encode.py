"""`python benchmarks/bench_hash_encode.py --help`; how the numbers are taken is in README.md beside this file."""

from hashgrid.bench.hash_encode import main

if __name__ == "__main__":
    main()
