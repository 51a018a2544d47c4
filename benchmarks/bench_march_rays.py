"""`python benchmarks/bench_march_rays.py --help`; how the numbers are taken is in README.md beside this file."""

from hashgrid.bench.march_rays import main

if __name__ == "__main__":
    main()
