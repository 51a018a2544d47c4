"""`python benchmarks/bench_render.py --help`; how the numbers are taken is in README.md beside this file."""

from hashgrid.bench.busy import main

if __name__ == "__main__":
    main()
