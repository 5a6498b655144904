"""Whether tensors are still the ones, with the content, that something was made from.

Identity alone does not tell: a parameter may be written in place, be given other storage through ``.data``, and its id
or its address may serve another tensor after it is gone.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from torchqx.storage import CHANGES, QuantizedWeight

Version = tuple[int | None, int, StorageWeakRef]


def plain_part(tensor: Tensor) -> Tensor:
    """The tensor that weak references may point to: a storage tensor's identity, or ``tensor`` itself."""
    return tensor.identity if isinstance(tensor, QuantizedWeight) else tensor


def version_of(tensor: Tensor) -> Version:
    """Changes when ``tensor`` is written to in place, or given other storage.

    The weak reference keeps the storage's identity, not its memory, so that no later storage is taken for it. What
    torch keeps no count of does not show: writes through ``.data``, and those to tensors made in inference mode. (See
    :func:`torchqx.refresh`.)
    """
    part = plain_part(tensor)
    return (None if part.is_inference() else part._version), part.data_ptr(), StorageWeakRef(part.untyped_storage())


class Watched:
    """The tensors at some positions of a graph's arguments, as they were; made to be asked before every call.

    Args:
        positions: which of ``args`` to watch.
        gone: called when one of the tensors is no more.
    """

    def __init__(self, args: Sequence[Any], positions: Sequence[int], gone: Callable[[], None]) -> None:
        self._stored = [i for i in positions if isinstance(args[i], QuantizedWeight)]
        self._plain = [i for i in positions if not isinstance(args[i], QuantizedWeight)]
        self._seen = CHANGES[0], [id(args[i]) for i in self._stored]
        identities = [plain_part(args[i]) for i in self._stored]
        self._identities = list(map(id, identities))
        plain = [args[i] for i in self._plain]
        self._counted = not any(t.is_inference() for t in plain)
        self._ids = list(map(id, plain))
        self._versions = [t._version for t in plain] if self._counted else []
        self._addresses = [t.data_ptr() for t in plain]
        self._storages = [torch._C._storage_address(t) for t in plain]
        # While these live, no other tensor gets one of the ids, and no other storage one of the addresses.
        self._tensor_references = [weakref.ref(t, lambda _: gone()) for t in (*plain, *identities)]
        self._storage_references = [StorageWeakRef(t.untyped_storage()) for t in plain]

    def unchanged(self, args: Sequence[Any]) -> bool:
        """Whether ``args`` holds the same tensors, unwritten."""
        plain = [args[i] for i in self._plain]
        try:
            return (
                list(map(id, plain)) == self._ids
                and (not self._counted or [t._version for t in plain] == self._versions)
                and list(map(Tensor.data_ptr, plain)) == self._addresses
                and list(map(torch._C._storage_address, plain)) == self._storages
                and (not self._stored or self._same_contents([args[i] for i in self._stored]))
            )
        except (AttributeError, KeyError, RuntimeError):  # another kind of tensor, or one with new content
            return False

    def _same_contents(self, stored: list[QuantizedWeight]) -> bool:
        # Looking into every weight costs a cache miss or three, before a call that has just begun.
        now = CHANGES[0], list(map(id, stored))
        if now == self._seen:
            return True
        if [id(w.__dict__["_identity"]) for w in stored] != self._identities:
            return False
        self._seen = now
        return True
