"""Normals of points that have none (Hoppe et al. 1992)."""

from __future__ import annotations

import numpy as np

from hashgrid.data.errors import MeshError
from hashgrid.util.optional import optional_import


def estimate_normals(points: np.ndarray, k: int = 12, name: str = "points") -> np.ndarray:
    """Outward unit normals [N, 3] of points [N, 3] on closed surfaces.

    The normal of the plane through the ``k`` nearest points, by principal components; neighbours agree on its sign
    along a minimum spanning tree (Hoppe et al. 1992, sections 3.2 and 3.3), and the outermost points of each connected
    part look outwards. The surface of a hollow comes out the wrong way around: nothing in its points tells.

    Raises:
        MeshError: there are too few points.
    """
    if len(points) <= k:
        raise MeshError(f"`{name}` must have more than {k} points for normals to be estimated, got {len(points)}")
    spatial = optional_import("scipy.spatial")
    _, neighbors = spatial.cKDTree(points).query(points, k=k + 1, workers=-1)
    offsets = points[neighbors] - points[neighbors].mean(1, keepdims=True)
    normals = np.linalg.eigh(offsets.transpose(0, 2, 1) @ offsets)[1][..., 0]
    return normals * _orientation(points, normals, neighbors[:, 1:])[:, None]


def _orientation(points: np.ndarray, normals: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Signs [N] that make normals [N, 3] agree; neighbors [N, k] are indices.

    Two normals agree if one is the other's mirror image about the middle between the points: exact on a circle and
    across an edge, and true of the two sides of a thin wall (König & Gumhold 2009).
    """
    sparse, graph = optional_import("scipy.sparse"), optional_import("scipy.sparse.csgraph")
    n, k = neighbors.shape
    source, target = np.repeat(np.arange(n), k), neighbors.reshape(-1)
    agreement = _agreement(points, normals, source, target)
    cost = 1 + 1e-6 - np.abs(agreement)  # a zero would be no edge
    costs = sparse.coo_matrix((cost, (source, target)), shape=(n, n)).tocsr()
    costs = costs.maximum(costs.T)
    tree = graph.minimum_spanning_tree(costs)
    n_parts, part = graph.connected_components(tree, directed=False)
    sign = np.ones(n)
    parent = np.arange(n)
    for root in np.unique(part, return_index=True)[1]:
        order, predecessor = graph.breadth_first_order(tree, root, directed=False)
        parent[order[1:]] = predecessor[order[1:]]
    moved = parent != np.arange(n)
    sign[moved] = np.where(_agreement(points, normals, np.arange(n)[moved], parent[moved]) < 0, -1.0, 1.0)
    for _ in range(n.bit_length()):  # products along the paths to the roots, twice as long each time
        sign, parent = sign * sign[parent], parent[parent]
    return sign * _outwards(points, normals * sign[:, None], part, n_parts)


def _agreement(points: np.ndarray, normals: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine [E] between the normals of points ``a`` [E] and those of ``b`` [E] reflected about the plane between."""
    edge = points[b] - points[a]
    edge /= np.maximum(np.linalg.norm(edge, axis=-1, keepdims=True), 1e-300)
    mirrored = normals[b] - 2 * (normals[b] * edge).sum(-1, keepdims=True) * edge
    return (normals[a] * mirrored).sum(-1)


def _outwards(points: np.ndarray, normals: np.ndarray, part: np.ndarray, n_parts: int) -> np.ndarray:
    """Sign [N] per part: the outermost points along the axes look outwards, by a vote."""
    vote = np.zeros(n_parts)
    for axis in range(3):
        order = np.lexsort((points[:, axis], part))
        last = np.append(np.flatnonzero(np.diff(part[order])), len(part) - 1)
        first = np.append(0, last[:-1] + 1)
        vote += normals[order[last], axis] - normals[order[first], axis]
    return np.where(vote < 0, -1.0, 1.0)[part]
