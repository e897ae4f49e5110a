"""Pages of keys and values: handed out, shared between sequences that begin alike, and kept for those to come.

A full page is known by the page before it and its tokens, so a chain of equal pages is an equal beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.models.decoder_parts import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

KEPT_BYTES = 512 * 2**20
"""Pages that nobody uses are kept for later prompts up to about this size of the whole store."""

Key = tuple[int, tuple[int, ...]]
"""Number of the chain before a page (0 or less at the beginning), and its tokens."""


@dataclass(slots=True)
class _Entry:
    users: int = 0
    key: Key | None = None
    chain: int = 0
    """Number that names the chain up to and including this page; 0 while the page is not full."""


class PageStore:
    """Hands out numbers of pages; `memory` holds them all."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, first: int = 64) -> None:
        self.memory: Tensor = torch.empty(first, *shape, dtype=dtype, device=device)
        self._entries = [_Entry() for _ in range(first)]
        self._free = list(range(first - 1, -1, -1))
        self._known: dict[Key, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()
        self._chains = 0

    @property
    def num_used(self) -> int:
        """Return how many pages sequences hold."""
        return len(self._entries) - len(self._free) - len(self._unused)

    def allocate(self) -> int:
        """Return an empty page with one user; drops the longest unused page, or grows."""
        if not self._free and (not self._unused or self.memory.nbytes < KEPT_BYTES):
            self._grow()
        if not self._free:
            self._forget(next(iter(self._unused)))
        page = self._free.pop()
        self._entries[page].users = 1
        return page

    def _grow(self) -> None:
        count = len(self._entries)
        grown = self.memory.new_empty(2 * count, *self.memory.shape[1:])
        grown[:count] = self.memory
        self.memory = grown
        self._entries.extend(_Entry() for _ in range(count))
        self._free.extend(range(2 * count - 1, count - 1, -1))

    def _forget(self, page: int) -> None:
        self._unused.pop(page)
        key = self._entries[page].key
        if key is not None:
            del self._known[key]
        self._entries[page] = _Entry()
        self._free.append(page)

    def use(self, page: int) -> None:
        """Add a user."""
        self._entries[page].users += 1
        self._unused.pop(page, None)

    def release(self, page: int) -> None:
        """Take a user away; a full page without users is kept while there is room."""
        entry = self._entries[page]
        entry.users -= 1
        if entry.users == 0:
            self._unused[page] = None
            if entry.key is None:
                self._forget(page)

    def copy(self, page: int) -> int:
        """Return a new page with the content of `page`."""
        made = self.allocate()
        self.memory[made] = self.memory[page]
        return made

    def write(self, tokens: tuple[int, ...], layers: Sequence[tuple[Tensor, Tensor]]) -> list[int]:
        """Return pages with given keys and values, [K, P, C] of each layer; the full ones are known by `tokens`.

        They keep a user, so that they are never dropped.
        """
        count, size = layers[0][0].shape[1:]
        table = [self.allocate() for _ in range(0, count, PAGE)]
        for index, page in enumerate(table):
            cells = slice(index * PAGE, min(count, (index + 1) * PAGE))
            keys, values = self.memory[page].unbind(0)
            for layer, (k_KPC, v_KPC) in enumerate(layers):
                part = cells.stop - cells.start
                keys[layer].view(-1, size, PAGE)[:, :, :part] = k_KPC[:, cells].transpose(1, 2)
                values[layer].view(-1, PAGE, size)[:, :part] = v_KPC[:, cells]
        self.keep(tokens, table)
        return table

    def find(self, tokens: tuple[int, ...], mark: int = 0) -> list[int]:
        """Return known pages for the longest beginning of `tokens`; not used yet.

        Pages of sequences with another `mark` (0 or less) are others: their keys and values come from other weights.
        """
        pages: list[int] = []
        chain = mark
        for start in range(0, len(tokens) - PAGE + 1, PAGE):
            page = self._known.get((chain, tokens[start : start + PAGE]))
            if page is None:
                break
            pages.append(page)
            chain = self._entries[page].chain
        return pages

    def keep(self, tokens: tuple[int, ...], table: list[int], mark: int = 0) -> None:
        """Make the full pages of a computed sequence known. A page that another sequence made first stays private."""
        chain = mark
        for index in range(len(tokens) // PAGE):
            key = (chain, tokens[index * PAGE : (index + 1) * PAGE])
            known = self._known.get(key)
            if known is None:
                entry = self._entries[table[index]]
                self._chains += 1
                entry.key, entry.chain = key, self._chains
                self._known[key] = known = table[index]
            chain = self._entries[known].chain

    def forget_all(self) -> None:
        """Drop what is known; for new weights. Pages in use stay with their users."""
        for page in list(self._unused):
            self._forget(page)
        for entry in self._entries:
            entry.key, entry.chain = None, 0
        self._known.clear()
