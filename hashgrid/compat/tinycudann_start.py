"""The parameters with which tiny-cuda-nn starts for a seed: PCG32 (O'Neill 2014) and its order of draws."""

from __future__ import annotations

import math

import numpy as np

_MULTIPLIER = 0x5851F42D4C957F2D
_STREAM = 3  # of the first sequence
_MASK = 2**64 - 1
_BLOCK = 2**14  # states that are computed from their predecessor; the others are jumped to
_DRAWS_PER_THREAD, _THREADS_PER_BLOCK = 4, 128  # of the kernel that fills a grid


class Pcg32:
    """32-bit random numbers, those of PCG's reference implementation for the first of its sequences."""

    def __init__(self, seed: int) -> None:
        self._state = 0
        self.advance(1)
        self._state = (self._state + seed) & _MASK
        self.advance(1)

    def draw(self, n: int) -> np.ndarray:
        """``n`` numbers in [0, 1), fp32, multiples of 2^-23."""
        words = np.empty(n, np.uint32)
        block = _successors(self._state, min(n, _BLOCK))
        factor, term = (np.uint64(value) for value in _jump(_BLOCK))
        for begin in range(0, n, _BLOCK):
            states = block[: n - begin]
            words[begin : begin + len(states)] = _output(states)
            block = block * factor + term
        self.advance(n)
        return (words >> np.uint32(9)).astype(np.float32) * np.float32(2.0**-23)

    def advance(self, n: int) -> None:
        """Leaves out ``n`` numbers; goes back by as many below 0."""
        factor, term = _jump(n & _MASK)
        self._state = (self._state * factor + term) & _MASK


def _jump(n: int) -> tuple[int, int]:
    """Factor and term that take a state ``n`` steps on (Brown 1994)."""
    factor, term, step_factor, step_term = 1, 0, _MULTIPLIER, _STREAM
    while n:
        if n & 1:
            factor, term = factor * step_factor & _MASK, (term * step_factor + step_term) & _MASK
        step_factor, step_term = step_factor * step_factor & _MASK, (step_factor + 1) * step_term & _MASK
        n >>= 1
    return factor, term


def _successors(state: int, n: int) -> np.ndarray:
    """The ``n`` states from ``state`` on, by doubling."""
    states = np.array([state], np.uint64)
    while len(states) < n:
        factor, term = (np.uint64(value) for value in _jump(len(states)))
        states = np.concatenate((states, states * factor + term))
    return states[:n]


def _output(states: np.ndarray) -> np.ndarray:
    """The random word of each state: XSH RR."""
    words = (((states >> np.uint64(18)) ^ states) >> np.uint64(27)).astype(np.uint32)
    turns = (states >> np.uint64(59)).astype(np.uint32)
    return (words >> turns) | (words << ((np.uint32(32) - turns) & np.uint32(31)))


def uniform_matrix(random: Pcg32, n_out: int, n_in: int, bound: float) -> np.ndarray:
    """Flat weights [n_out * n_in] from U(-bound, bound), rounded as tiny-cuda-nn's host code rounds."""
    bound = np.float32(bound)
    return random.draw(n_out * n_in) * np.float32(2) * bound - bound


def xavier_bound(n_out: int, n_in: int) -> float:
    """Of a layer's weights."""
    return float(np.sqrt(np.float32(6) / np.float32(n_in + n_out)))


def sine_bound(n_in: int, is_first: bool) -> float:
    """The same in front of sines; tiny-cuda-nn draws the first layer like SIREN, the others sqrt(30) times as large."""
    return 30 / n_in if is_first else math.sqrt(6 / n_in)


def uniform_table(random: Pcg32, n: int) -> np.ndarray:
    """Flat entries of a grid from U(-1e-4, 1e-4), in the order of the threads that draw four each."""
    n_threads = -(-n // _DRAWS_PER_THREAD)
    stride = -(-n_threads // _THREADS_PER_BLOCK) * _THREADS_PER_BLOCK
    # thread i has draws 4 i .. 4 i + 3 and writes entries i, i + stride, ...; those beyond n are not written
    draws = random.draw(_DRAWS_PER_THREAD * stride)
    random.advance(n - len(draws))
    entries = draws.reshape(stride, _DRAWS_PER_THREAD).T.reshape(-1)[:n]
    bound = float(np.float32(1e-4))
    return (entries.astype(np.float64) * (2 * bound) - bound).astype(np.float32)  # as one fused multiply and add
