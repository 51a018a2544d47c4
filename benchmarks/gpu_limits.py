"""What every CUDA kernel moves and computes, the time that takes at least on an H200, and how many warps a
multiprocessor holds. Counted by hand from the kernels, registers from `tests/cuda/resources.json`; nothing is measured.

``python benchmarks/gpu_limits.py`` prints the table, ``--store`` writes it to `docs/gpu_limits.md`. It fails where a
kernel has no count.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

RESOURCES = Path(__file__).parents[1] / "tests" / "cuda" / "resources.json"
DOCUMENT = Path(__file__).parents[1] / "docs" / "gpu_limits.md"
ARCH = "sm_90"

# H200: a copy through PyTorch and a large bfloat16 matrix product, both measured; fp32 and fp64 are the data sheet's.
COPY_BYTES, TENSOR_FLOP, FP32_FLOP, FP64_FLOP = 4.3e12, 790e12, 67e12, 34e12  # per second
# 132 multiprocessors at 1.755 GHz: each moves 128 bytes per clock through shared memory and the L1 cache together, and
# issues four instructions of 32 threads.
L1_BYTES, INSTRUCTIONS = 132 * 1.755e9 * 128, 132 * 1.755e9 * 4 * 32  # per second
# Of one multiprocessor of compute capability 9.0.
REGISTERS, SHARED_BYTES, WARPS, BLOCKS = 65536, 228 * 1024, 64, 32


@dataclass(frozen=True)
class Count:
    """Of one unit of work, in the sizes that `INTRODUCTION` names.

    Attributes:
        kernel: as `resources.json` has it.
        n_bytes: read and written once: what crosses to memory where nothing is in the cache but the table, of which a
            group of levels is.
        sectors: of 32 bytes, asked of the L2 cache.
        atomics: instructions of one thread, each for a whole row of the table.
        flop, tensor_flop, fp64_flop: additions and multiplications.
        l1_bytes: through shared memory, and of weights through the L1 cache.
        instructions: of one thread in the machine code, on the way a unit takes; 0: not counted.
        threads: of a block.
        shared: bytes a block asks for at its launch.
    """

    kernel: str
    unit: str
    n_bytes: float
    sectors: float
    flop: float = 0
    atomics: float = 0
    tensor_flop: float = 0
    fp64_flop: float = 0
    l1_bytes: float = 0
    instructions: float = 0
    threads: int = 256
    shared: int = 0


INTRODUCTION = """# What the CUDA kernels cost at least

Written by `python benchmarks/gpu_limits.py --store`: counts by hand from the kernels, not measurements. Sizes: a grid
of 16 levels of 2 features, T = 19, 3 dimensions; networks 32-64-64-16 (the field: 32-64-16, 32-64-64-3) with bfloat16
factors; three channels; spherical harmonics of degree 4; 12 frequencies; fp32 tensors. Bytes are read or written once;
rows of the table come from the L2 cache, in sectors of 32 bytes; an atomic adds a whole row, those of jets one number.
"At least" is the larger of bytes over 4.3 TB/s, tensor-core operations over 790 TFLOP/s (both measured on an H200),
others over the data sheet's 67 TFLOP/s of fp32 and 34 of fp64, L1 (bytes through shared memory, and weights through the
L1 cache) over 128 bytes per clock and multiprocessor, and instructions, where they were counted, over four per clock.
The rates of random L2 sectors and of atomics, which limit the encoding, have to be measured on the card: `hashgrid
bench encode --device cuda` does. Warps are those that one of its multiprocessors holds at a time, of 64.

What stands out: the backward of the networks takes longest to move factors between warps, not to multiply them, and
holds 12 warps, as a block of four takes 72 KB of shared memory, or 8, with 109 KB for both networks of a field; what
reads the grid and multiplies in one kernel holds 12, too, and waits for its own instructions, of which the encoding has
three quarters and more. Atomics of the table's gradient are those of scattered points: 6 on
average, as half of the x-neighbours are added in one; along rays a part of them is saved (docs/kernels.md).

"""
MLP = 2 * (32 * 64 + 64 * 64 + 64 * 16)  # of the products of one row
FIELD = 2 * (32 * 64 + 64 * 16 + 32 * 64 + 64 * 64 + 64 * 16)  # of both networks of the field, tiles of 16 outputs
DENSITY = 2 * (32 * 64 + 64 * 16)
# Weights, tiles of 512 bytes that 32 rows share. The backward also writes and reads factors and gradients, 1 KB per
# tile of 32 rows, and per 128 rows reads both again for weight gradients, and adds these to 28 or 40 tiles of sums.
MLP_WEIGHTS, FIELD_WEIGHTS, DENSITY_WEIGHTS = 28 * 16, 40 * 16, 12 * 16
MLP_BACKWARD = (24 + 28) * 16 + (10 + 8 + 1 + 9 + 8 + 8) * 32 + 30 * 8 * 512 / 128 + 28 * 2048 / 128
FIELD_BACKWARD = (36 + 4 + 36) * 16 + (16 + 12 + 1 + 14 + 12 + 13) * 32 + 44 * 8 * 512 / 128 + 40 * 2048 / 128
# Rows and positions of 8 points, 4 levels per warp: 12 / 4 bytes of a position per level, 5 sectors of a cell's rows.
COUNTS = (
    Count(
        "hash_encode_forward_kernel<float, float, 3, 2>",
        "point, level",
        0.75 + 8,
        5 + 0.25 + 0.1,
        6 + 16 + 32,
        instructions=400,
    ),
    Count("hash_encode_backward_table_kernel<3, 2>", "point, level", 0.75 + 8, 0.25 + 0.1, 38, 6, instructions=560),
    Count(
        "hash_encode_backward_table_any_kernel<float, 2, (TableSum)0>", "point, level", 8.75, 0.35, 8, 8, fp64_flop=30
    ),
    Count("hash_encode_add_fixed_kernel<float>", "element", 8 + 8, 0.5, 0, fp64_flop=2),
    Count(
        "hash_encode_backward_positions_kernel<float, float, 3, 2>",
        "point",
        152,
        80 + 16,
        16 * 8 * 19,
        instructions=5400,
    ),
    Count("hash_encode_backward_level_weights_kernel<float, float>", "point, level", 8.75, 5.4, fp64_flop=60),
    Count("hash_encode_sum_level_chunks_kernel<float>", "chunk of 1024 points", 128, 4, fp64_flop=16, threads=32),
    Count(
        "hash_encode_jet_forward_kernel<float, 3>", "point, level, 2 directions", 42.25, 6.3, 2 * 8 * 60, threads=128
    ),
    Count(
        "hash_encode_jet_backward_points_kernel<float, 3>",
        "point, 2 directions",
        712,
        102,
        16 * 2 * 8 * 330,
        threads=128,
    ),
    Count(
        "hash_encode_jet_backward_table_kernel<float, 3>",
        "point, level, 2 directions",
        42.25,
        1.3,
        2 * 8 * 58,
        32,
        threads=128,
    ),
    Count("hash_encode_second_points_kernel<float, float, 3>", "point", 292, 80 + 32, 16 * 8 * 70),
    Count("hash_encode_second_level_weights_kernel<float, float>", "point, level", 8.75, 5.4, fp64_flop=200),
    Count("hash_encode_second_table_kernel<2>", "point, level", 9.5, 1.8, 8 * 20, 6, instructions=640),
    Count(
        "hash_encode_second_table_any_kernel<float, (TableSum)0>",
        "point, level",
        9.5,
        1.8,
        atomics=16,
        fp64_flop=8 * 20,
    ),
    Count(
        "hash_encode_mlp_kernel<float, BFloat16, 3, 4, true>",
        "point",
        12 + 64,
        82,
        16 * 54,
        tensor_flop=MLP,
        l1_bytes=MLP_WEIGHTS,
        instructions=6600,
        threads=128,
    ),
    Count(
        "radiance_field_kernel<float, BFloat16>",
        "point",
        12 + 8 + 16,
        86,
        16 * 54,
        tensor_flop=FIELD,
        l1_bytes=FIELD_WEIGHTS,
        instructions=7300,
        threads=128,
    ),
    Count(  # of a ray of 4 samples: 24 + 64 bytes in, 20 out
        "render_rays_kernel<float, BFloat16>",
        "sample",
        108 / 4,
        86,
        16 * 54 + 30,
        tensor_flop=FIELD,
        fp64_flop=4,
        l1_bytes=FIELD_WEIGHTS,
        instructions=7700,
        threads=128,
    ),
    Count(
        "occupancy_values_kernel<float, BFloat16>",
        "cell",
        8 + 4,
        82,
        16 * 54 + 30,
        tensor_flop=DENSITY,
        l1_bytes=DENSITY_WEIGHTS,
        instructions=6400,
        threads=128,
    ),
    Count(
        "radiance_mlp_forward_kernel<BFloat16>",
        "sample",
        128 + 8 + 16,
        7,
        tensor_flop=FIELD,
        l1_bytes=FIELD_WEIGHTS,
        threads=128,
    ),
    Count(
        "radiance_mlp_backward_kernel<BFloat16>",
        "sample",
        128 + 8 + 16 + 128,
        11,
        tensor_flop=3 * FIELD,
        l1_bytes=FIELD_BACKWARD,
        threads=128,
        shared=111_104,
    ),
    Count(
        "mlp_fused_forward_kernel<BFloat16, 4, 2, true>",
        "row",
        192,
        6,
        tensor_flop=MLP,
        l1_bytes=MLP_WEIGHTS,
        instructions=650,
        threads=128,
    ),
    Count(
        "mlp_fused_backward_kernel<BFloat16, 4, 2>",
        "row",
        320,
        10,
        tensor_flop=3 * MLP,
        l1_bytes=MLP_BACKWARD,
        instructions=2900,
        threads=128,
        shared=73_728,
    ),
    Count("mlp_pack_kernel", "weight", 6, 0.2, threads=128),
    Count("mlp_reduce_kernel<float, FusedTarget>", "partial sum", 4, 0.125, 1),
    Count("mlp_product_kernel<float, (ProductKind)0>", "row, layer of 64", 512, 16, 2 * 64 * 64),
    Count("mlp_activate_kernel<float>", "element", 8, 0.25, 1),
    Count("mlp_derivative_kernel<float>", "element", 12, 0.375, 2),
    Count("mlp_jet_import_kernel<float>", "element", 8, 0.25, 0),
    Count("mlp_jet_export_kernel<float>", "element", 8, 0.25, 0),
    Count("mlp_jet_activate_kernel<float>", "element, 2 directions", 44, 1.375, 12),
    Count("mlp_jet_derivative_kernel<float>", "element, 2 directions", 64, 2, 25),
    Count("mlp_bias_gradient_kernel<float>", "element", 4, 0.125, 1),
    Count("sh_encode_forward_kernel<float, 4>", "direction", 76, 2.4, 60, threads=128),
    Count("sh_encode_backward_kernel<float, 4>", "direction", 88, 2.75, 110, threads=128),
    Count("frequency_encode_forward_kernel<float>", "input, frequency", 8.3, 0.3, 40),
    Count("frequency_encode_backward_kernel<float>", "input", 104, 3.3, 12 * 45),
    Count("counter_uniform_kernel", "number", 12, 0.4, 20),
    Count("sample_positions_kernel<float>", "sample", 16 + 12, 2, 9),
    Count("sample_rays_kernel", "ray", 32 + 52, 4, 150, threads=128),
    Count("ray_aabb_kernel<float>", "ray", 32, 1, 24),
    Count("sphere_trace_kernel<float>", "ray, step", 106, 3.3, 12),
    Count("march_rays_mark_bricks_kernel", "brick", 8 + 1, 0.8, 80, threads=128),
    Count("march_rays_bricks_kernel", "brick", 1 + 1, 0.1, 500, threads=128),
    Count("march_rays_count_kernel<float>", "step or skipped cell", 0, 1, 45, threads=128),
    Count("march_rays_write_kernel<float>", "step or skipped cell", 16, 1.5, 45, threads=128),
    Count("march_rays_cut_kernel", "ray", 16, 0.5, threads=128),
    Count("march_rays_fill_kernel<float>", "sample", 16, 0.5, threads=128),
    Count("scan_chunk_sums_kernel", "ray", 8, 0.5),
    Count("scan_chunks_kernel", "chunk of rays", 16, 0.5),
    Count("scan_rays_kernel", "ray", 16, 0.5),
    Count("window_samples_count_kernel<float>", "sample in front", 12, 0.4, 6, fp64_flop=6, threads=128),
    Count("window_samples_write_kernel<float>", "sample", 8 + 8 + 12, 0.9, 8, threads=128),
    Count("visible_samples_count_kernel<float>", "sample", 12, 0.4, 6, fp64_flop=6, threads=128),
    Count("visible_samples_write_kernel", "sample", 24, 0.75, threads=128),
    Count("line_integrals_forward_kernel<float, 1>", "sample", 8, 0.25, 2, threads=128),
    Count("line_integrals_backward_kernel<float>", "sample", 16, 0.5, 3, threads=128),
    Count("composite_forward_kernel<float, 3, false>", "sample", 24 + 4, 0.9, 20, fp64_flop=20, threads=128),
    Count("composite_backward_kernel<float, 3, false>", "sample", 28 + 16, 1.4, 40, fp64_flop=35, threads=128),
    Count("pixel_loss_kernel<float>", "ray", 40 + 16, 1.75, 60),
    Count("pixel_loss_sum_kernel", "chunk of 256 rays", 16, 0.5, fp64_flop=2),
    Count("occupancy_points_kernel<float>", "cell", 20, 0.6, 20),
    Count("occupancy_visible_kernel", "cell", 1, 0.03, 6 * 8),
    Count("occupancy_update_decay_kernel", "cell", 8, 0.25, 1),
    Count("occupancy_update_raise_kernel", "evaluated cell", 20, 2.4, 1),
    Count("occupancy_update_sum_kernel", "cell", 4, 0.125, fp64_flop=1, threads=512),
    Count("occupancy_update_threshold_kernel", "chunk of cells", 16, 0.5, fp64_flop=1, threads=512),
    Count("occupancy_update_pack_kernel", "cell", 4.1, 0.13, 1),
    Count("adam_step_rows_kernel<float, 2>", "row with a gradient", 92, 2.9, 2 * 25),
    Count("adam_step_elements_kernel<float>", "weight", 28, 0.9, 20),
    Count("adam_step_prepare_kernel", "parameter", 40, 2, fp64_flop=60, threads=1),
)


def main() -> int:
    table = json.loads(RESOURCES.read_text())
    resources = {key: dict(zip(table["fields"], row, strict=True)) for key, row in table["kernels"].items()}
    built = {key.removeprefix(f"{ARCH} ") for key in resources if key.startswith(f"{ARCH} ")}
    counted = {count.kernel for count in COUNTS}
    problems = [f"{name}: counted, but not built" for name in counted - built]
    problems += [f"{name}: not counted" for name in {base_of(n) for n in built} - {base_of(n) for n in counted}]
    if problems:
        print("\n".join(sorted(problems)), file=sys.stderr)
        return 1
    text = INTRODUCTION + "\n".join(rows(resources)) + "\n"
    if "--store" in sys.argv[1:]:
        DOCUMENT.write_text(text)
    print(text, end="")
    return 0


def rows(resources: dict[str, dict[str, int]]) -> list[str]:
    """The table in Markdown."""
    lines = [
        "| kernel | unit | bytes | sectors | atomics | operations | L1 | instructions | at least, ns per 1000 units "
        "| registers | warps |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for count in COUNTS:
        row = resources[f"{ARCH} {count.kernel}"]
        seconds, what = limit(count)
        kinds = ((count.flop, ""), (count.tensor_flop, " tensor"), (count.fp64_flop, " fp64"))
        operations = " + ".join(f"{n:.0f}{kind}" for n, kind in kinds if n > 0) or "0"
        moved = (f"{n:g}" for n in (count.n_bytes, count.sectors, count.atomics))
        warps = str(resident_warps(count, row))
        inside = (f"{n:.0f}" if n > 0 else "" for n in (count.l1_bytes, count.instructions))
        cells = (f"`{count.kernel}`", count.unit, *moved, operations, *inside, f"{seconds * 1e12:.3g} ({what})")
        cells += (str(row["registers"]), warps)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def limit(count: Count) -> tuple[float, str]:
    """Seconds per unit that memory or arithmetic takes at least, and which of them."""
    parts = {
        "memory": count.n_bytes / COPY_BYTES,
        "tensor cores": count.tensor_flop / TENSOR_FLOP,
        "fp32": count.flop / FP32_FLOP,
        "fp64": count.fp64_flop / FP64_FLOP,
        "L1": count.l1_bytes / L1_BYTES,
        "instructions": count.instructions / INSTRUCTIONS,
    }
    what = max(parts, key=lambda part: parts[part])
    return parts[what], what


def resident_warps(count: Count, resources: dict[str, int]) -> int:
    """Warps a multiprocessor holds at once. Registers are given out to warps, 256 at a time; 1 KB of shared memory per
    block is the system's."""
    warps = -(-count.threads // 32)
    per_warp = -(-resources["registers"] * 32 // 256) * 256
    shared = count.shared + resources["shared"] + 1024
    blocks = min(REGISTERS // per_warp // warps, WARPS // warps, BLOCKS, SHARED_BYTES // shared)
    return blocks * warps


def base_of(kernel: str) -> str:
    return kernel.partition("<")[0]


if __name__ == "__main__":
    sys.exit(main())
