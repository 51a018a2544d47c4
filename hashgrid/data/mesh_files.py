"""Triangle meshes as files: PLY, OBJ and GLB, with colours or a texture, far from the origin, too."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hashgrid.data.mesh_colors import srgb_to_linear
from hashgrid.util.files import atomic_write_bytes
from hashgrid.util.optional import optional_import


class Texture(NamedTuple):
    """A picture for the surface of a mesh. Vertices at a seam have several places in it."""

    uv: np.ndarray  # [W, 2] in 0..1, v up
    faces: np.ndarray  # [F, 3], the corners of the mesh's faces in ``uv``
    vertex: np.ndarray  # [W], which vertex of the mesh each place is of
    image: np.ndarray  # [H, W, 3] uint8, sRGB, the top row first


class _Mesh(NamedTuple):
    """What :func:`write_mesh` is given."""

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray | None
    colors: np.ndarray | None
    texture: Texture | None
    lit: bool


def write_mesh(
    path: str | Path,
    vertices: np.ndarray,
    faces: np.ndarray,
    normals: np.ndarray | None = None,
    colors: np.ndarray | None = None,
    texture: Texture | None = None,
    lit: bool = True,
) -> None:
    """Writes vertices [V, 3], faces [F, 3], normals [V, 3] and colours [V, 3] in 0..1 (sRGB), or a texture, in the
    format that the path's ending names. The texture of OBJ is a PNG, named by an MTL, beside it.

    Args:
        lit: whether viewers are to light what they show; False where colours are those of a photo, with its light.

    Raises:
        ValueError: the ending names another format than PLY, OBJ or GLB, or PLY with a texture.
        ImportError: trimesh (for GLB) or Pillow (for a texture) is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".ply", ".obj", ".glb"):
        raise ValueError(f"meshes are written as ply, obj or glb, got `{path}`")
    if suffix == ".ply":
        if texture is not None:
            raise ValueError(f"a mesh with a texture is written as obj or glb, got `{path}`")
        write_ply(path, vertices, faces, normals, colors)
    else:
        mesh = _Mesh(vertices, faces, normals, colors, texture, lit)
        (_write_obj if suffix == ".obj" else _write_glb)(Path(path), mesh)


def _bytes(colors: np.ndarray) -> np.ndarray:
    """Colours in 0..1 as 0..255, uint8."""
    return (np.clip(colors, 0, 1) * 255 + 0.5).astype(np.uint8)


def _png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    optional_import("PIL.Image").fromarray(image).save(content, "PNG")
    return content.getvalue()


def _write_obj(path: Path, mesh: _Mesh) -> None:
    """Writes text OBJ, replacing an earlier file only once the new one is complete. Colours follow the coordinates of
    a vertex, as most programs read them; a texture is NAME.png, named by NAME.mtl, with neither blanks nor light."""
    vertices, faces, normals, colors, texture, lit = mesh
    columns = vertices if colors is None else np.concatenate((vertices, np.clip(colors, 0, 1)), axis=1)
    form = ".9g" if fits_float32(vertices) else ".17g"
    lines = ["v " + " ".join(format(x, form) for x in row) for row in columns.tolist()]
    lines += [] if normals is None else ["vn " + " ".join(f"{x:.6g}" for x in row) for row in normals]
    corners = (faces + 1).astype(str)
    if texture is not None:
        name = "_".join(path.stem.split())
        atomic_write_bytes(path.with_name(f"{name}.png"), _png(texture.image))
        material = f"newmtl surface\nKa 1 1 1\nKd 1 1 1\nillum {int(lit)}\nmap_Kd {name}.png\n"
        atomic_write_bytes(path.with_name(f"{name}.mtl"), material.encode())
        lines = [f"mtllib {name}.mtl", *lines, *(f"vt {u:.7g} {v:.7g}" for u, v in texture.uv.tolist())]
        lines.append("usemtl surface")
        corners = np.char.add(np.char.add(corners, "/"), (texture.faces + 1).astype(str))
    if normals is not None:
        joint = "//" if texture is None else "/"
        corners = np.char.add(np.char.add(corners, joint), (faces + 1).astype(str))
    lines += ["f " + " ".join(face) for face in corners.tolist()]
    atomic_write_bytes(path, ("\n".join(lines) + "\n").encode())


def _write_glb(path: Path, mesh: _Mesh) -> None:
    """Writes binary glTF, replacing an earlier file only once the new one is complete. Its vertices are always float32;
    where that would move them (see :func:`fits_float32`) they are relative to their centre, which is the translation
    of the node. The axes stay those of the input: y is not made to be up. Colours of vertices are linear there, 16
    bits each, textures are sRGB; without light it is `KHR_materials_unlit` that says so."""
    trimesh = optional_import("trimesh")
    vertices, faces, normals, colors, texture, lit = mesh
    scene = trimesh.Scene()
    centre = np.zeros(3) if fits_float32(vertices) else (vertices.min(0) + vertices.max(0)) / 2
    if len(faces):
        options: dict[str, Any] = {"process": False}
        if colors is not None and texture is None:
            linear = np.round(65535 * srgb_to_linear(np.clip(colors, 0, 1))).astype(np.uint16)
            options["vertex_attributes"] = {"_COLOR_0": np.pad(linear, ((0, 0), (0, 1)), constant_values=65535)}
        if texture is not None:
            vertices, faces = vertices[texture.vertex], texture.faces
            normals = None if normals is None else normals[texture.vertex]
            image = optional_import("PIL.Image").open(io.BytesIO(_png(texture.image)))
            material = trimesh.visual.material.PBRMaterial(
                baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0
            )
            options["visual"] = trimesh.visual.TextureVisuals(texture.uv, material=material)
        scene.add_geometry(trimesh.Trimesh(vertices - centre, faces, vertex_normals=normals, **options))

    def finish(tree: dict[str, Any]) -> None:
        for node in tree.get("nodes", []):
            node["translation"] = centre.tolist()
        for primitive in (part for mesh in tree.get("meshes", []) for part in mesh["primitives"]):
            attributes = primitive["attributes"]
            if "_COLOR_0" in attributes:
                attributes["COLOR_0"] = attributes.pop("_COLOR_0")
                tree["accessors"][attributes["COLOR_0"]]["normalized"] = True
                rough = {"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}
                primitive["material"] = len(tree.setdefault("materials", []))
                tree["materials"].append(rough)
        for material in tree.get("materials", []) if not lit else ():
            material["extensions"] = {"KHR_materials_unlit": {}}
            tree["extensionsUsed"] = ["KHR_materials_unlit"]

    gltf = optional_import("trimesh.exchange.gltf")
    atomic_write_bytes(path, gltf.export_glb(scene, include_normals=True, tree_postprocessor=finish))


def fits_float32(vertices: np.ndarray) -> bool:
    """Whether rounding vertices [V, 3] to float32 moves them by at most 1e-6 of their extent: survey coordinates do
    not fit."""
    extent = float(np.ptp(vertices, axis=0).max()) if len(vertices) else 0.0
    return bool(np.abs(vertices - vertices.astype(np.float32)).max(initial=0.0) <= 1e-6 * extent)


def write_ply(
    path: str | Path,
    vertices: np.ndarray,
    faces: np.ndarray,
    normals: np.ndarray | None = None,
    colors: np.ndarray | None = None,
) -> None:
    """Writes binary PLY, replacing an earlier file only once the new one is complete. Vertices are float32, or float64
    where float32 would move them (see :func:`fits_float32`)."""
    fields, columns = dict.fromkeys("xyz", "<f4" if fits_float32(vertices) else "<f8"), vertices
    if normals is not None:
        fields |= dict.fromkeys(("nx", "ny", "nz"), "<f4")
        columns = np.concatenate([columns, normals], axis=1)
    if colors is not None:
        fields |= dict.fromkeys(("red", "green", "blue"), "u1")
        columns = np.concatenate([columns, _bytes(colors)], axis=1)
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    types = {"<f4": "float", "<f8": "double", "u1": "uchar"}
    header += [f"property {types[code]} {name}" for name, code in fields.items()]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    points: Any = np.zeros(len(vertices), list(fields.items()))
    for name, column in zip(fields, columns.T, strict=True):
        points[name] = column
    rows: Any = np.zeros(len(faces), dtype=[("n", "u1"), ("v", "<i4", 3)])
    rows["n"], rows["v"] = 3, faces
    body = points.tobytes() + rows.tobytes()
    atomic_write_bytes(path, "\n".join(header).encode() + body)
