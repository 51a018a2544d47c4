"""Which way faces look: as their neighbours, and out of what they enclose."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hashgrid.util.optional import optional_import

PROBES = 16  # about as many vertices of a part must lie within another one to call it enclosed


@dataclass
class Oriented:
    """Faces that look outwards, as far as it can be known."""

    faces: np.ndarray  # [F, 3]
    changes: list[str] = field(default_factory=list)  # what was changed, for a warning
    doubt: str = ""  # why it is not known what is inside; empty where it is


@dataclass
class _Edges:
    """Edges of faces [F, 3]."""

    edge: np.ndarray  # number of the edge [3 F] between corners 0 and 1, 1 and 2, 2 and 0 of each face
    forward: np.ndarray  # whether the face runs from the lower to the higher vertex there [3 F]
    n_faces: np.ndarray  # number of faces at each edge [E]

    @classmethod
    def of(cls, faces: np.ndarray) -> _Edges:
        start, end = faces.reshape(-1), faces[:, [1, 2, 0]].reshape(-1)
        key = np.minimum(start, end) << 32 | np.maximum(start, end)
        _, edge, n_faces = np.unique(key, return_inverse=True, return_counts=True)
        return cls(edge.reshape(-1), start < end, n_faces)

    def count(self, of: np.ndarray) -> np.ndarray:
        """Number of faces, of those ``of`` [F], at each edge [E]."""
        return np.bincount(self.edge, np.repeat(of, 3), len(self.n_faces))

    def imbalance(self, of: np.ndarray) -> np.ndarray:
        """Faces, of those ``of`` [F], that run one way along each edge minus those that run the other way [E]; 0 where
        a surface goes on."""
        return np.bincount(self.edge, np.where(self.forward, 1.0, -1.0) * np.repeat(of, 3), len(self.n_faces))

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The two faces of each edge that has two, and whether these do not look the same way."""
        inner = np.flatnonzero(self.n_faces[self.edge] == 2)
        a, b = inner[np.argsort(self.edge[inner], kind="stable")].reshape(-1, 2).T
        return a // 3, b // 3, self.forward[a] == self.forward[b]


def orient(vertices: np.ndarray, faces: np.ndarray) -> Oriented:
    """Turns faces [F, 3] so that neighbours agree and closed parts, cavities apart, look outwards. Faces that are right
    stay as they are. Of faces that coincide one is left, none where it is a wall in or a sheet on a closed surface."""
    result = Oriented(faces)
    two_sided = _drop_coinciding(result)
    edges = _Edges.of(result.faces)
    part, mixed = _agree(vertices, result, edges, two_sided)
    if mixed.any():
        edges = _Edges.of(result.faces)
    body, n_closed = _bodies(part, edges)
    _turn_outwards(vertices, result, body, n_closed, mixed[part])
    if not result.doubt and (np.abs(edges.imbalance(np.ones(len(result.faces)))) > 1).any():
        result.doubt = "faces that meet at an edge contradict each other"
    return result


def _drop_coinciding(result: Oriented) -> np.ndarray:
    """Drops faces that :func:`orient` does not leave; returns which of the others [F] looked both ways."""
    faces = result.faces
    a, b, c = np.sort(faces, axis=1).T
    pair = np.unique(a << 32 | b, return_inverse=True)[1].reshape(-1)
    _, first, group = np.unique(pair << 32 | c, return_index=True, return_inverse=True)
    if len(first) == len(faces):
        return np.zeros(len(faces), bool)
    group = group.reshape(-1)
    even = (faces < faces[:, [1, 2, 0]]).sum(1) == 2  # the corners turn as their numbers grow
    net = np.bincount(group, np.where(even, 1.0, -1.0))
    wanted = np.flatnonzero(even == (net >= 0)[group])
    keep = np.sort(wanted[np.unique(group[wanted], return_index=True)[1]])
    single = net[group[keep]] != 0
    edges = _Edges.of(faces[keep])
    double = np.abs(net[group[keep]]) > 1
    # bodies side by side have their wall back to back
    if ((edges.count(double) > 0) & (edges.count(~double) > 0) & (edges.n_faces > 2)).any():
        result.doubt = "bodies that touch do not look the same way"
    if not single.all():
        result.changes.append(
            f"{int((net[group] == 0).sum())} faces lie back to back: one of each two is left, or none"
        )
        label = _joined(edges, np.ones(len(keep), bool))
        closed = np.bincount(label, single) > 0
        closed[np.repeat(label, 3)[edges.count(single)[edges.edge] % 2 == 1]] = False
        keep = keep[single | ~closed[label]]
    result.faces = faces[keep]
    return net[group[keep]] == 0


def _agree(
    vertices: np.ndarray, result: Oriented, edges: _Edges, two_sided: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Turns faces around that do not look as most of those do that are connected to them by edges of two faces; those
    ``two_sided`` [F] have no vote. Returns the connected part of each face [F], and which parts [P] were mixed."""
    n = len(result.faces)
    a, b, differ = edges.pairs()
    n_parts, part = _components(a, b, n)
    mixed = np.zeros(n_parts, bool)
    if not differ.any():
        return part, mixed
    # every face twice, as it is and turned around: a surface with two sides falls into two components
    there = np.where(differ, n, 0)
    _, side = _components(np.concatenate([a, a + n]), np.concatenate([b + there, b + n - there]), 2 * n)
    mixed[part[a[differ]]] = True
    one_sided = side[:n] == side[n:]
    root = np.unique(part, return_index=True)[1]
    turned = (side[:n] != side[root][part]) & ~one_sided
    area = ~two_sided * np.linalg.norm(np.cross(*np.moveaxis(np.diff(vertices[result.faces], axis=1), 1, 0)), axis=-1)
    more = np.bincount(part, np.where(turned, area, -area)) > 0
    turned ^= more[part] & mixed[part] & ~one_sided
    if one_sided.any():
        result.doubt = "its surface has one side only, as a Moebius strip has"
    if n_turned := int((turned & ~two_sided).sum()):
        result.changes.append(f"{n_turned} faces look the other way than their neighbours and are turned around")
    result.faces = np.where(turned[:, None], result.faces[:, ::-1], result.faces)
    return part, mixed


def _bodies(part: np.ndarray, edges: _Edges) -> tuple[np.ndarray, int]:
    """Numbers [F] of the closed parts, 0 .. n - 1, and n for all faces that are in none, and n."""
    if (edges.n_faces == 2).all():
        return part, int(part.max()) + 1
    place = edges.edge * (int(part.max()) + 1) + np.repeat(part, 3)
    _, index, count = np.unique(place, return_inverse=True, return_counts=True)
    open_ = np.bincount(np.repeat(part, 3), count[index.reshape(-1)] != 2) > 0
    loose = open_[part]
    body = part.copy()
    if loose.any() and (edges.n_faces > 2).any():  # parts that touch along edges may be closed together
        body[loose] = _joined(edges, loose)[loose] + len(open_)
        uneven = np.repeat(loose, 3) & (edges.imbalance(loose)[edges.edge] != 0)
        loose &= ~np.isin(body, np.repeat(body, 3)[uneven])
    numbers = np.unique(body[~loose], return_inverse=True)[1].reshape(-1)
    n = int(numbers.max(initial=-1)) + 1
    body[~loose], body[loose] = numbers, n
    return body, n


def _turn_outwards(vertices: np.ndarray, result: Oriented, body: np.ndarray, n_closed: int, mixed: np.ndarray) -> None:
    """Turns closed bodies 0 .. n_closed - 1 around that look inwards and are no cavities, and all open ones together;
    ``mixed`` [F] faces are of parts whose faces did not look the same way."""
    faces, n = result.faces, n_closed + 1
    n_faces = np.maximum(np.bincount(body, minlength=n), 1)
    middles = vertices[faces].mean(1)
    centre = np.stack([np.bincount(body, x, n) / n_faces for x in middles.T], axis=-1)
    a, b, c = (vertices[faces] - centre[body, None]).transpose(1, 0, 2)
    sign = np.where(np.bincount(body, (a * np.cross(b, c)).sum(-1), n) < -1e-12, -1, 1)  # rounding of flat ones apart
    if (sign > 0).all():
        return
    there = np.unique(body)
    final = np.ones_like(sign)
    if len(there) > 1:
        final = _signs(vertices, faces, body, sign, np.bincount(body, mixed, n) > 0)
    turned = final != sign
    if turned.any():
        n_turned = int(turned[there].sum())
        which = "the faces" if n_turned == len(there) else f"{n_turned} of {len(there)} parts"
        result.changes.append(f"{which} look inwards and are turned around")
        result.faces = np.where(turned[body][:, None], faces[:, ::-1], faces)


def _signs(
    vertices: np.ndarray, faces: np.ndarray, body: np.ndarray, sign: np.ndarray, mixed: np.ndarray
) -> np.ndarray:
    """Signs [B] that bodies should have, where they have ``sign`` [B]. Those that look inwards are cavities where they
    lie within something solid; elsewhere they are turned around, with what they enclose but for ``mixed`` ones [B]."""
    igl = optional_import("igl")
    order = np.argsort(body, kind="stable")
    ends = np.searchsorted(body[order], np.arange(len(sign) + 1))
    members = [faces[order[i:j]] for i, j in zip(ends[:-1], ends[1:], strict=True)]
    low, high = np.full((2, len(sign), 3), np.nan)
    for i, part in enumerate(members):
        if len(part):
            low[i], high[i] = vertices[part].min((0, 1)), vertices[part].max((0, 1))
    size = np.nan_to_num(high - low).sum(1)
    around: list[list[int]] = [[] for _ in members]
    for outer in np.argsort(-size).tolist():
        inner = np.flatnonzero((low[outer] < low).all(1) & (high[outer] > high).all(1)).tolist()
        if not inner:
            continue
        tree = igl.FastWindingNumberBVH()
        tree.init(vertices, np.ascontiguousarray(members[outer]))
        probes = [vertices[np.unique(members[i])[:: max(1, len(members[i]) // PROBES)]] for i in inner]
        winding = np.abs(tree.winding_number(np.concatenate(probes))) > 0.5
        for i, inside in zip(inner, np.split(winding, np.cumsum([len(p) for p in probes])[:-1]), strict=True):
            if inside.all():
                around[i].append(outer)
    final = sign.copy()
    for i in np.argsort(-size).tolist():
        if around[i]:
            parent = around[i][-1]
            if final[parent] != sign[parent] and not mixed[parent]:
                final[i] = -sign[i]
        if final[i] < 0 and sum(final[around[i]]) <= 0:
            final[i] = 1
    return final


def _joined(edges: _Edges, of: np.ndarray) -> np.ndarray:
    """Numbers [F] of the parts that faces ``of`` [F] make, connected by any edges."""
    n = len(of)
    face = np.repeat(np.arange(n), 3)
    used = np.repeat(of, 3)
    return _components(face[used], n + edges.edge[used], n + len(edges.n_faces))[1][:n]


def _components(a: np.ndarray, b: np.ndarray, n: int) -> tuple[int, np.ndarray]:
    """Number of connected components of ``n`` nodes, ``a`` [E] connected to ``b`` [E], and that of each node [n]."""
    sparse = optional_import("scipy.sparse")
    graph = sparse.coo_matrix((np.ones(len(a), np.bool_), (a, b)), shape=(n, n))
    return optional_import("scipy.sparse.csgraph").connected_components(graph, directed=False)
