"""An exact set of 16-byte hashes that stays small: 16 bytes each, where a Python set takes about 100."""

import numpy as np

RECENT = 1 << 19


class HashSet:
    """16-byte hashes: the newest in a Python set, the rest in a few sorted arrays that are merged as they grow."""

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._runs: list[np.ndarray] = []  # (n,) of S16, sorted, each more than twice as long as the next

    def __contains__(self, digest: bytes) -> bool:
        if digest in self._recent:
            return True
        for run in self._runs:
            place = int(run.searchsorted(digest))
            # S16 drops trailing NULs on reading; all hashes have 16 bytes, so padding them back is exact.
            if place < len(run) and bytes(run[place]).ljust(16, b"\0") == digest:
                return True
        return False

    def add(self, digest: bytes) -> bool:
        """Add a hash; whether it was new."""
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
