"""`python benchmarks/bench_hash_encode_mlp.py --help`; how the numbers are taken is in README.md beside this file."""

from hashgrid.bench.hash_encode_mlp import main

if __name__ == "__main__":
    main()
