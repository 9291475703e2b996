"""An exact set of 16-byte hashes that takes 16 bytes per entry, where a Python set takes about 100."""

import numpy as np

RECENT = 1 << 19  # entries held in the Python set before they move to a sorted array


class HashSet:
    """Holds the newest hashes in a Python set and the rest in a few sorted arrays that are merged as they grow."""

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._runs: list[np.ndarray] = []  # sorted (n,) arrays of S16, each more than twice as long as the next

    def __contains__(self, digest: bytes) -> bool:
        if digest in self._recent:
            return True
        for run in self._runs:
            place = int(run.searchsorted(digest))
            # NumPy strips trailing NULs from S16 values; every hash has 16 bytes, so padding restores it exactly.
            if place < len(run) and bytes(run[place]).ljust(16, b"\0") == digest:
                return True
        return False

    def add(self, digest: bytes) -> bool:
        """Add a hash. Return whether it was new."""
        if digest in self:
            return False
        self._recent.add(digest)
        if len(self._recent) >= RECENT:
            self._runs.append(np.array(sorted(self._recent), dtype="S16"))
            self._recent = set()
            while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
                last = self._runs.pop()
                self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]))
        return True

    def __len__(self) -> int:
        return len(self._recent) + sum(len(run) for run in self._runs)
