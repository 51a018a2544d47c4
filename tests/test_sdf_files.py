"""Files of meshes and points as other programs write them: polygons, encodings, line ends, cut off, compressed."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hashgrid.data.errors import MeshError, MeshWarning
from hashgrid.data.formats import READERS
from hashgrid.data.formats.polygons import triangulate
from hashgrid.data.mesh import load_mesh, signed_volume
from hashgrid.data.mesh_files import write_mesh
from hashgrid.data.points import load_points, make_points

# a hexagonal prism of height 2: two hexagons, six quads
ANGLE = np.arange(6) * np.pi / 3
RING = np.stack([np.cos(ANGLE), np.sin(ANGLE)], axis=-1)
VERTICES = np.concatenate([np.column_stack([RING, np.full(6, z)]) for z in (-1.0, 1.0)])
POLYGONS = [[5, 4, 3, 2, 1, 0], [6, 7, 8, 9, 10, 11]] + [[i, (i + 1) % 6, 6 + (i + 1) % 6, 6 + i] for i in range(6)]
VOLUME = 2 * 6 * np.sqrt(3) / 4

CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
CUBE_FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4],
     [1, 5, 7], [1, 7, 3]]
)  # fmt: skip


def rows(values: Any, end: str = "\n") -> str:
    return "".join(" ".join(f"{x:.17g}" for x in row) + end for row in values)


def ply_header(kind: str, n_vertices: int, n_faces: int, more: str = "") -> str:
    return (
        f"ply\nformat {kind} 1.0\ncomment Würfel\nelement vertex {n_vertices}\n"
        + "".join(f"property double {c}\n" for c in "xyz")
        + f"element face {n_faces}\nproperty list uchar uint vertex_indices\n{more}end_header\n"
    )


def prism_ply(order: str = "<", more: bool = False) -> bytes:
    kind = {"<": "binary_little_endian", ">": "binary_big_endian"}[order]
    header = ply_header(kind, 12, 8, "property float quality\n" if more else "")
    tail = np.array(0.5, f"{order}f4").tobytes() if more else b""
    faces = [bytes([len(f)]) + np.array(f, f"{order}u4").tobytes() + tail for f in POLYGONS]
    return header.encode("latin-1") + VERTICES.astype(f"{order}f8").tobytes() + b"".join(faces)


PRISM_TEXT = rows(VERTICES) + rows([len(f), *f] for f in POLYGONS)
PRISM_OBJ = "".join(f"v {line}\n" for line in rows(VERTICES).splitlines()) + "".join(
    "f " + " ".join(f"{i + 1}" for i in f) + "\n" for f in POLYGONS
)
RELATIVE_OBJ = PRISM_OBJ.partition("f ")[0] + "".join(
    "f " + " \\\n ".join(f"{i - 12}//{i + 1}" for i in f) + "\n" for f in POLYGONS
)
COLOURED_OFF = "COFF # Größe\n12 8 0\n\n" + rows(VERTICES, " 255 0 0 255\n") + rows([len(f), *f, 0.5] for f in POLYGONS)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".ply", (ply_header("ascii", 12, 8) + PRISM_TEXT).encode("latin-1")),
        (".ply", (ply_header("ascii", 12, 8) + PRISM_TEXT).replace("\n", "\r\n").encode("gbk", "replace")),
        (".ply", prism_ply("<")),
        (".ply", prism_ply(">")),
        (".ply", prism_ply("<", more=True)),
        (".off", f"OFF\n12 8 0\n{PRISM_TEXT}".encode()),
        (".off", f"OFF12 8 0\n{PRISM_TEXT}".encode()),
        (".off", COLOURED_OFF.encode("latin-1")),
        (".obj", PRISM_OBJ.encode()),
        (".obj", PRISM_OBJ.replace(" ", "\t").encode()),
        (".obj", PRISM_OBJ.encode("utf-8-sig")),
        (".obj", PRISM_OBJ.encode("utf-16")),
        (".obj", PRISM_OBJ.replace("\n", "\r").encode()),
        (".obj", ("mtllib Größe.mtl\no Würfel\n" + PRISM_OBJ).encode("latin-1")),
        (".obj", ("# 零件\ng 零件\n" + PRISM_OBJ).encode("gbk")),
        (".obj", RELATIVE_OBJ.encode()),
    ],
)
def test_polygons_are_read(suffix: str, content: bytes) -> None:
    vertices, faces = READERS[suffix](content)
    np.testing.assert_array_equal(vertices, VERTICES)
    assert faces.shape == (20, 3) and signed_volume(vertices, faces) == pytest.approx(VOLUME, rel=1e-12)


def test_strips_of_a_ply_end_with_their_row_and_at_minus_one() -> None:
    header = ply_header("ascii", 4, 0).replace("element face 0", "element tristrips 2").replace("uint", "int")
    content = header + rows(CUBE[:4]) + "7 0 1 2 -1 1 3 2\n4 0 1 2 3\n"
    _, faces = READERS[".ply"](content.encode("latin-1"))
    np.testing.assert_array_equal(faces, [[0, 1, 2], [1, 3, 2], [0, 1, 2], [3, 2, 1]])


def text_stl(name: str) -> str:
    facets = "".join("facet normal 0 0 0\nouter loop\n" + rows(CUBE[f]) + "endloop\nendfacet\n" for f in CUBE_FACES)
    lines = [f"vertex {line}" if line[0] in "-0123456789" else line for line in facets.splitlines()]
    return f"solid {name}\n" + "\n".join(lines) + f"\nendsolid {name}\n"


def binary_stl(header: bytes = b"solid by name only") -> bytes:
    records = np.zeros(12, [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")])
    records["corners"] = CUBE[CUBE_FACES]
    return header.ljust(80) + struct.pack("<I", 12) + records.tobytes()


@pytest.mark.parametrize(
    "content",
    [
        text_stl("Gehäuse").encode("latin-1"),
        text_stl("零件").encode("gbk"),
        text_stl("零件").replace("\n", "\r\n").upper().encode("utf-8-sig"),
        binary_stl(),
        binary_stl("Gehäuse".encode("latin-1")),
    ],
)
def test_names_in_stl_may_have_any_encoding(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "cube.stl").write_bytes(content)
    mesh = load_mesh(tmp_path / "cube.stl")
    assert len(mesh.vertices) == 8 and len(mesh.faces) == 12 and mesh.watertight


ASCII_PLY = (ply_header("ascii", 12, 8) + PRISM_TEXT).encode("latin-1")
OFF = f"OFF\n12 8 0\n{PRISM_TEXT}".encode()


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".stl", binary_stl()[:-30], "cut off.*says 12 triangles, there are 11"),
        (".stl", binary_stl() + bytes(20), "12 triangles end at byte 684, there are 704"),
        (".stl", text_stl("a").encode()[:-40], "cut off"),
        (".stl", b"<!DOCTYPE html><html></html>", "web page"),
        (".stl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 684\n", "Git LFS pointer"),
        (".obj", b"\x1f\x8b\x08\x00", "compressed"),
        (".ply", ASCII_PLY.rsplit(b"\n", 2)[0], "cut off: its header says 8 of `face`, there are 7"),
        (".ply", ASCII_PLY + b"3 0 1 2\n", "4 numbers are left"),
        (".ply", prism_ply()[:-1], "cut off: its header says 8 of `face`, there are 7"),
        (".ply", prism_ply()[:-200], "cut off: its header says 12 of `vertex`, there are 10"),
        (".ply", prism_ply() + b"0", "1 bytes are left"),
        (".ply", ASCII_PLY.replace(b"\n4 0 1 7 6", b"\n4 0 1.5 7 6"), "corners of faces must be integers, got 1.5"),
        (".ply", prism_ply()[:50], "up to `end_header`"),
        (".ply", ASCII_PLY.replace(b"vertex_indices", b"corners"), "must have a list `vertex_indices`, it has corners"),
        (".off", OFF.rsplit(b"\n", 2)[0], "cut off: 12 vertices and 8 faces are on 19 lines"),
        (".off", OFF[:-4], "cut off"),
        (".off", OFF.replace(b"\n4 0 1 7 6", b"\n-4 0 1 7 6"), "faces must have their number of corners"),
        (".off", OFF + b"3 0 1 2\n", "longer than its header says"),
        (".off", b"OFF BINARY\n" + bytes(24), "as text is read, got `OFF BINARY`"),
        (".obj", PRISM_OBJ.encode()[:-8], "cut off"),
        (".obj", PRISM_OBJ.encode()[:-9], "cut off"),
        (".obj", b"v 0 0 0\nv 1 0 0\nf 1 2 1\nv ", "cut off"),
        (".obj", b"v 0,5 1,0 2,0\nf 1 1 1\n", "vertices must be numbers, got `0,5`; write decimal points"),
        (".obj", b"v 0 1 2\nv 0 1\nf 1 1 1\n", "three coordinates, got `0 1`"),
        (".obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n", r"must be 1\.\.3, got 1\.\.4"),
        (".obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n", r"must be 1\.\.3, got 0\.\.2"),
        (
            ".glb",
            b"glTF" + struct.pack("<II", 2, 1000) + bytes(50),
            "cut off: its header says 1000 bytes, there are 62",
        ),
    ],
)
def test_error_is_about_the_file(suffix: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / f"mesh{suffix}"
    path.write_bytes(content)
    with pytest.raises(MeshError, match=message) as error:
        load_mesh(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# an arrow, a U of eight corners, and a square with a square hole that is bridged by an edge used twice
ARROW = [[0, 0], [2, -1], [0, 3], [-2, -1]]
LETTER = [[0, 0], [3, 0], [3, 3], [2, 3], [2, 1], [1, 1], [1, 3], [0, 3]]
FRAME = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0], [1, 1], [1, 3], [3, 3], [3, 1], [1, 1]]


@pytest.mark.parametrize(("outline", "area"), [(ARROW, 6.0), (LETTER, 7.0), (FRAME, 12.0)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
def test_concave_polygons_are_covered_once(outline: list[list[float]], area: float, axes: tuple[int, ...]) -> None:
    flat = np.column_stack([np.array(outline, np.float64), np.zeros(len(outline))])
    for shift in range(len(outline)):
        vertices = np.roll(flat, shift, axis=0)[:, axes]
        faces = triangulate(vertices, np.array([len(outline)]), np.arange(len(outline)))
        a, b, c = vertices[faces].transpose(1, 0, 2)
        normals = np.cross(b - a, c - a) / 2
        assert len(faces) == len(outline) - 2
        assert np.linalg.norm(normals, axis=-1).sum() == pytest.approx(area)
        assert np.linalg.norm(normals.sum(0)) == pytest.approx(area)
        turn = np.linalg.det(np.eye(3)[list(axes)])
        assert (normals.sum(0) * turn)[axes.index(2)] == pytest.approx(area)


# ---- GLB -------------------------------------------------------------------------------------------------------------


def glb(
    positions: np.ndarray, kind: int, node: dict[str, Any], primitive: dict[str, Any], **tree: Any
) -> tuple[dict[str, Any], bytes]:
    """JSON and binary chunk of a scene of one mesh, its indices those of the cube."""
    stride = -(-positions[0].nbytes // 4) * 4
    padded = np.zeros((len(positions), stride), np.uint8)
    padded[:, : positions[0].nbytes] = np.ascontiguousarray(positions).view(np.uint8).reshape(len(positions), -1)
    indices = CUBE_FACES.astype("<u2").tobytes()
    scene = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, **node}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, **primitive}]}],
        "accessors": [
            {"bufferView": 0, "componentType": kind, "count": len(positions), "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": CUBE_FACES.size, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteLength": padded.nbytes, "byteStride": stride},
            {"buffer": 0, "byteOffset": padded.nbytes, "byteLength": len(indices)},
        ],
        "buffers": [{"byteLength": padded.nbytes + len(indices)}],
        **tree,
    }
    return scene, padded.tobytes() + indices


def packed(scene: dict[str, Any], chunk: bytes) -> bytes:
    text = json.dumps(scene).encode()
    text, chunk = text + b" " * (-len(text) % 4), chunk + bytes(-len(chunk) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(chunk), b"BIN\0") + chunk
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


HALF = np.sqrt(0.5)


@pytest.mark.parametrize(
    ("positions", "kind", "normalized", "node", "low", "high"),
    [
        (CUBE.astype("<f4"), 5126, False, {}, [-1, -1, -1], [1, 1, 1]),
        ((CUBE * 32767).astype("<i2"), 5122, True, {"scale": [3, 1, 1]}, [-3, -1, -1], [3, 1, 1]),
        ((CUBE * 127).astype("<i1"), 5120, True, {"translation": [1, 0, 0]}, [0, -1, -1], [2, 1, 1]),
        (((CUBE + 1) * 50).astype("<u1"), 5121, False, {"scale": [0.01, 0.01, 0.01]}, [0, 0, 0], [1, 1, 1]),
        (CUBE.astype("<f4"), 5126, False, {"scale": [-2, 1, 1]}, [-2, -1, -1], [2, 1, 1]),
        (
            CUBE.astype("<f4"),
            5126,
            False,
            {"rotation": [0, 0, HALF, HALF], "scale": [2, 1, 1], "translation": [5, 6, 7]},
            [4, 4, 6],
            [6, 8, 8],
        ),
        (
            CUBE.astype("<f4"),
            5126,
            False,
            {"matrix": [0, 2, 0, 0, -1, 0, 0, 0, 0, 0, 1, 0, 5, 6, 7, 1]},
            [4, 4, 6],
            [6, 8, 8],
        ),
    ],
)
def test_glb_has_its_true_size(positions, kind, normalized, node, low, high) -> None:
    scene, chunk = glb(positions, kind, node, {}, extensionsRequired=["KHR_mesh_quantization", "KHR_texture_basisu"])
    scene["accessors"][0]["normalized"] = normalized
    vertices, faces = READERS[".glb"](packed(scene, chunk))
    np.testing.assert_allclose(vertices.min(0), low, atol=1e-7)
    np.testing.assert_allclose(vertices.max(0), high, atol=1e-7)
    assert signed_volume(vertices, faces) == pytest.approx(np.prod(np.subtract(high, low)), rel=1e-6)


def test_parts_of_a_glb_are_put_together() -> None:
    scene, chunk = glb(CUBE.astype("<f4"), 5126, {}, {})
    scene["nodes"] = [
        {"children": [1, 2], "scale": [0.5, 0.5, 0.5]},
        {"mesh": 0, "translation": [-4, 0, 0]},
        {"mesh": 0, "translation": [4, 0, 0]},
        {"mesh": 0, "translation": [0, 100, 0]},  # of no scene
    ]
    scene["meshes"][0]["primitives"].append({"attributes": {"POSITION": 0}, "mode": 0})  # points
    vertices, faces = READERS[".glb"](packed(scene, chunk))
    np.testing.assert_allclose([vertices.min(0), vertices.max(0)], [[-2.5, -0.5, -0.5], [2.5, 0.5, 0.5]])
    assert len(faces) == 24 and signed_volume(vertices, faces) == pytest.approx(2)


def test_strips_and_fans_turn_as_gltf_says() -> None:
    scene, chunk = glb(CUBE.astype("<f4"), 5126, {}, {})
    for mode, expected in ((5, [[0, 1, 3], [0, 3, 1]]), (6, [[0, 1, 3], [0, 3, 0]])):
        scene["meshes"][0]["primitives"][0]["mode"] = mode
        scene["accessors"][1]["count"] = 4
        np.testing.assert_array_equal(READERS[".glb"](packed(scene, chunk))[1], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("draco", "KHR_draco_mesh_compression are not read; export without"),
        ("meshopt", "EXT_meshopt_compression are not read; export without"),
        ("instances", "EXT_mesh_gpu_instancing are not read; export without"),
        ("unknown", "requires the glTF extension ACME_shape"),
        ("outside", "everything to one GLB file"),
        ("short", "may be cut off"),
    ],
)
def test_glb_that_cannot_be_read_is_refused_by_name(change: str, message: str) -> None:
    scene, chunk = glb(CUBE.astype("<f4"), 5126, {}, {})
    if change == "draco":
        scene["meshes"][0]["primitives"][0]["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0}}
        for accessor in scene["accessors"]:
            del accessor["bufferView"]
    elif change == "meshopt":
        scene["buffers"].append({"byteLength": 400, "extensions": {"EXT_meshopt_compression": {"fallback": True}}})
        for view in scene["bufferViews"]:
            view |= {"buffer": 1, "extensions": {"EXT_meshopt_compression": {"buffer": 0}}}
    elif change == "instances":
        scene["nodes"][0]["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": {}}}
    elif change == "unknown":
        scene["extensionsRequired"] = ["ACME_shape"]
    elif change == "outside":
        scene["buffers"][0]["uri"] = "cube.bin"
    else:
        scene["accessors"][0]["count"] = 1000
    with pytest.raises(MeshError, match=message):
        READERS[".glb"](packed(scene, chunk))


# ---- points ----------------------------------------------------------------------------------------------------------


def ball(n: int = 1000) -> np.ndarray:
    points = np.random.default_rng(0).normal(size=(n, 3))
    return points / np.linalg.norm(points, axis=-1, keepdims=True)


@pytest.mark.parametrize("largest", [1.0, 255, 65535])
@pytest.mark.parametrize("suffix", [".xyz", ".npz"])
def test_colours_are_not_taken_for_normals(largest: float, suffix: str, tmp_path: Path) -> None:
    points, colours = ball(), largest * np.random.default_rng(1).random((1000, 3))
    colours = colours if largest == 1 else np.round(colours)
    colours[::50] = 0  # black
    path = tmp_path / f"scan{suffix}"
    if suffix == ".npz":
        np.savez(path, points=2 * points, normals=colours)
    else:
        np.savetxt(path, np.column_stack([2 * points, colours]), fmt="%.6g")
    with pytest.warns(MeshWarning, match="normals of `scan.* are left out: like colours"):
        cloud = load_points(path)
    assert ((cloud.normals * points).sum(-1) > 0.9).all()


def test_normals_that_all_look_one_way_are_normals(tmp_path: Path) -> None:
    points = np.abs(ball())
    np.savetxt(tmp_path / "part.xyz", np.column_stack([points, points]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cloud = load_points(tmp_path / "part.xyz")
    np.testing.assert_allclose(cloud.normals, points, atol=1e-12)


def test_points_far_from_the_origin_keep_their_place(tmp_path: Path) -> None:
    """Survey coordinates of a scanner: what float32 would round to half metres."""
    points = ball() + (500123.27, 5400456.6, 321.1)
    np.savetxt(tmp_path / "scan.xyz", np.column_stack([points, ball()]), fmt="%.17g")
    cloud = load_points(tmp_path / "scan.xyz")
    back = cloud.placement.to_file(torch.from_numpy(cloud.points)).numpy()
    np.testing.assert_allclose(back, points, rtol=0, atol=2e-9)
    np.testing.assert_allclose(cloud.points, make_points(ball(), ball()).points, rtol=0, atol=1e-8)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1", "gbk"])
def test_points_may_have_any_encoding(encoding: str, tmp_path: Path) -> None:
    points = 2 * ball()
    comment = "# 零件\n" if encoding == "gbk" else "" if encoding == "utf-8-sig" else "# Größe\n"
    (tmp_path / "scan.xyz").write_bytes((comment + rows(np.column_stack([points, points]), "\r\n")).encode(encoding))
    cloud = load_points(tmp_path / "scan.xyz")
    np.testing.assert_allclose(cloud.placement.to_file(torch.from_numpy(cloud.points)).numpy(), points, atol=1e-12)


@pytest.mark.parametrize("unit", [1.0, 1e-3])
@pytest.mark.parametrize("with_normals", [False, True])
@pytest.mark.parametrize("suffix", [".ply", ".glb"])
def test_meshes_far_from_the_origin_keep_their_place(tmp_path, suffix, unit, with_normals) -> None:
    """Survey coordinates: the mesh is fitted in its cube, and written where it was."""
    corners = (CUBE + 1) / 2
    place = np.array([500123.27, 5400456.6, 321.1])
    vertices, normals = unit * corners + place, CUBE / np.sqrt(3) if with_normals else None
    far, near = tmp_path / f"far{suffix}", tmp_path / f"near{suffix}"
    write_mesh(far, vertices, CUBE_FACES, normals)
    write_mesh(near, unit * corners, CUBE_FACES, normals)
    if suffix == ".ply":
        assert b"property double x" in far.read_bytes()[:400] and b"property float x" in near.read_bytes()[:400]
    else:
        data = far.read_bytes()
        tree = json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])
        np.testing.assert_allclose(tree["nodes"][0]["translation"], place + unit / 2, rtol=0, atol=1e-9)
    mesh = load_mesh(far, 0.1)
    assert mesh.vertices.min() == pytest.approx(0.1) and mesh.vertices.max() == pytest.approx(0.9)
    back = mesh.placement.to_file(torch.from_numpy(mesh.vertices)).numpy()
    np.testing.assert_allclose(back[np.lexsort(back.T)], vertices[np.lexsort(vertices.T)], rtol=0, atol=2e-9)
    assert signed_volume(mesh.vertices, mesh.faces) == pytest.approx(0.8**3)


@pytest.mark.parametrize("suffix", [".ply", ".glb"])
def test_other_programs_read_what_is_written(tmp_path, suffix) -> None:
    trimesh = pytest.importorskip("trimesh")
    write_mesh(tmp_path / f"a{suffix}", CUBE + (1e6, 0, 0), CUBE_FACES, CUBE / np.sqrt(3))
    mesh = trimesh.load(tmp_path / f"a{suffix}", process=False, force="mesh")
    np.testing.assert_allclose(mesh.vertices, CUBE + (1e6, 0, 0), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, CUBE_FACES)
    np.testing.assert_allclose(mesh.vertex_normals, CUBE / np.sqrt(3), atol=1e-6)
    write_mesh(tmp_path / f"none{suffix}", np.zeros((0, 3)), np.zeros((0, 3), int))
    with pytest.raises(MeshError, match="no faces"):
        load_mesh(tmp_path / f"none{suffix}")


def test_other_endings_are_not_written(tmp_path) -> None:
    with pytest.raises(ValueError, match="written as ply, obj or glb, got"):
        write_mesh(tmp_path / "a.stl", CUBE, CUBE_FACES)
