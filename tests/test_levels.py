"""The level table: published entry counts, conventions, rounding and errors."""

from __future__ import annotations

import math

import pytest

from hashgrid.levels import LevelTable, as_level_table, make_level_table, round_fp32


@pytest.mark.parametrize(
    ("options", "n_entries_times_features"),
    [
        ({"n_input_dims": 3, "n_levels": 16, "log2_hashmap_size": 19, "per_level_scale": 128 ** (1 / 15)}, 12196240),
        ({"n_input_dims": 3, "n_levels": 16, "log2_hashmap_size": 19, "max_resolution": 2048}, 12196240),
        ({"n_input_dims": 3, "n_levels": 16, "log2_hashmap_size": 19, "per_level_scale": 2.0}, 14229504),
        (
            {
                "n_input_dims": 3,
                "n_levels": 20,
                "log2_hashmap_size": 16,
                "base_resolution": 32,
                "per_level_scale": 1.5,
            },
            2555904,
        ),
        ({"n_input_dims": 2, "n_levels": 16, "log2_hashmap_size": 15, "per_level_scale": 1.5}, 708368),
    ],
)
def test_entry_counts_with_two_features(options: dict, n_entries_times_features: int) -> None:
    assert make_level_table(**options).n_entries * 2 == n_entries_times_features


def test_entry_count_with_four_features() -> None:
    assert make_level_table(3, 8, 19, 16, per_level_scale=2.0).n_entries * 4 == 11681792


def test_published_resolutions() -> None:
    levels = make_level_table(3, 16, 19, 16, max_resolution=2048)
    assert [x for x, y, z in levels.resolutions[:15] if x == y == z] == [
        16,
        23,
        31,
        43,
        59,
        81,
        112,
        154,
        213,
        295,
        407,
        562,
        777,
        1073,
        1483,
    ]
    assert levels.sizes[:6] == (4096, 12168, 29792, 79512, 205384, 524288)
    assert levels.hashed.index(True) == 5


def test_levels_lie_back_to_back_and_fit() -> None:
    levels = make_level_table(3, 8, 12, 5, per_level_scale=1.3)
    end = 0
    for level in range(levels.n_levels):
        assert levels.offsets[level] == end
        assert levels.sizes[level] % 8 == 0 and levels.sizes[level] <= 2**12
        assert levels.hashed[level] == (levels.resolutions[level][0] ** 3 > levels.sizes[level])
        end += levels.sizes[level]
    assert levels.n_entries == end


def test_conventions() -> None:
    tcnn = make_level_table(2, 4, 19, 10, per_level_scale=1.5)
    paper = make_level_table(2, 4, 19, 10, per_level_scale=1.5, convention="paper")
    assert (tcnn.shift, paper.shift) == (0.5, 0.0)
    assert tcnn.scales == tuple((round_fp32(10 * 1.5**level - 1),) * 2 for level in range(4))
    assert tcnn.resolutions == ((10, 10), (15, 15), (23, 23), (34, 34))
    assert paper.scales == ((10, 10), (15, 15), (22, 22), (33, 33))
    assert paper.resolutions == ((11, 11), (16, 16), (23, 23), (34, 34))


def test_paper_convention_hits_max_resolution_despite_rounding() -> None:
    for max_resolution in (64, 100, 512, 2048, 4096):
        levels = make_level_table(3, 16, 19, 16, max_resolution=max_resolution, convention="paper")
        assert levels.scales[-1] == (max_resolution,) * 3


def test_one_resolution_per_axis() -> None:
    levels = make_level_table(3, 4, 14, (16, 16, 8), (128, 128, 8), convention="paper")
    assert levels.per_axis and not make_level_table(3, 4, 14, (16, 16, 16), (128, 128, 128)).per_axis
    assert levels.scales == ((16, 16, 8), (32, 32, 8), (64, 64, 8), (128, 128, 8))
    assert levels.resolutions == tuple(tuple(int(scale) + 1 for scale in row) for row in levels.scales)
    # entries of a dense level are the product, rounded up to 8
    assert levels.sizes == (17 * 17 * 9 + 7, 33 * 33 * 9 + 7, 2**14, 2**14)
    assert levels.hashed == (False, False, True, True)
    # each axis is as that of a cube
    for axis, (base, end) in enumerate(((20, 300), (9, 9), (5, 1000))):
        cube = make_level_table(3, 7, 12, base, end)
        box = make_level_table(3, 7, 12, (20, 9, 5), (300, 9, 1000))
        assert [row[axis] for row in box.scales] == [row[0] for row in cube.scales]
        assert [row[axis] for row in box.resolutions] == [row[0] for row in cube.resolutions]
    assert make_level_table(2, 3, 10, 4, per_level_scale=(2, 1.5)).resolutions == ((4, 4), (8, 6), (16, 9))


def test_arguments_of_the_ops() -> None:
    levels = make_level_table(2, 2, 4, (4, 2), (8, 2), convention="paper")
    assert levels.arguments == ((4, 2, 8, 2, 0.0), (5, 3, 0, 16, 0, 9, 3, 16, 16, 1))


def test_scales_are_fp32() -> None:
    levels = make_level_table(3, 16, 19, 16, per_level_scale=1.3819)
    assert all(round_fp32(scale) == scale for row in levels.scales for scale in row)
    assert round_fp32(0.1) != 0.1 and round_fp32(1e300) == math.inf


def test_level_table_is_hashable_and_round_trips_through_dicts() -> None:
    levels = make_level_table(2, 3)
    dicts = [
        {
            "scale": scale,
            "resolution": resolution,
            "shift": levels.shift,
            "offset": offset,
            "size": size,
            "hashed": hashed,
        }
        for scale, resolution, offset, size, hashed in zip(
            levels.scales, levels.resolutions, levels.offsets, levels.sizes, levels.hashed, strict=True
        )
    ]
    assert as_level_table(dicts, 2) == levels == as_level_table(levels, 2)
    assert hash(as_level_table(dicts, 2)) == hash(levels)
    dicts[0]["shift"] = 0.0
    with pytest.raises(ValueError, match="one `shift` for all levels"):
        as_level_table(dicts, 2)
    with pytest.raises(ValueError, match="is for 2 input dims"):
        as_level_table(levels, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_input_dims": 0}, r"`n_input_dims` must be in 1..7, got 0"),
        ({"n_input_dims": 8}, r"`n_input_dims` must be in 1..7, got 8"),
        ({"n_levels": 0}, r"`n_levels` must be in 1..64, got 0"),
        ({"log2_hashmap_size": 31}, r"`log2_hashmap_size` must be in 0..30, got 31"),
        ({"base_resolution": 0}, r"`base_resolution` must be at least 1, got 0"),
        ({"max_resolution": 8}, r"`max_resolution` must be at least `base_resolution` 16, got 8"),
        ({"max_resolution": None}, r"give `max_resolution` or `per_level_scale`"),
        ({"per_level_scale": -1.0}, r"`per_level_scale` must be positive and finite, got -1.0"),
        ({"per_level_scale": 100.0}, r"level 5 would have .* the limit is 2\^31"),
        ({"base_resolution": (16, 16)}, r"`base_resolution` must be an integer or 3 of them, got \(16, 16\)"),
        ({"base_resolution": (16, 0, 16)}, r"`base_resolution` must be at least 1, got \(16, 0, 16\)"),
        ({"max_resolution": (64, 8, 64)}, r"`max_resolution` must be at least `base_resolution` 16, got 8"),
        ({"max_resolution": (64, 64)}, r"`max_resolution` must be a number or 3 of them, one per axis, got \(64, 64\)"),
        ({"per_level_scale": (2.0, -1.0, 2.0)}, r"`per_level_scale` must be positive and finite"),
        (
            {"n_input_dims": 4, "n_levels": 49, "base_resolution": (1, 2, 3, 4), "max_resolution": 9},
            "axes may differ in grids of up to 192 levels times dimensions, got 49 levels of 4 dimensions",
        ),
        ({"convention": "ngp"}, r"`convention` must be one of .*got 'ngp'"),
    ],
)
def test_errors_name_contract_and_actual(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_level_table(**options)


def test_level_table_rejects_inconsistent_levels() -> None:
    with pytest.raises(ValueError, match="`resolutions` must have 2 values, one per level, got 1"):
        LevelTable(3, (15.0, 31.0), (16,), 0.5, (0, 4096), (4096, 4096), (False, True))
    with pytest.raises(ValueError, match=r"`scales\[0\]` must be a finite fp32 value, got 0.1"):
        LevelTable(3, (0.1,), (2,), 0.5, (0,), (8,), (False,))
