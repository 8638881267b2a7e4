"""A pretend accelerator: torch's private-use device, registered in Python, whose tensors wrap CPU memory.

It computes as the CPU does, refuses operations between its tensors and the CPU's as a GPU would, and counts the times
that the host waits for the device. It has no streams and no kernels, so it shows neither races nor speed.

Registering it changes torch for the whole process, so tests do it in a process of their own.
"""

from collections import Counter
from functools import cache, partial

import torch
from torch.utils import _pytree as tree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
aten = torch.ops.aten
# Operations whose result the host must have before it can go on: a number, or a shape.
WAITING = {
    aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave,
}  # fmt: skip
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COPYING = {aten._to_copy, aten.copy_, aten._copy_from, aten._copy_from_and_resize}
SYNCS: Counter[str] = Counter()
_LIBRARIES: list[torch.library.Library] = []  # torch forgets what is registered when they are freed
_HostGenerator = torch.Generator


class PretendTensor(torch.Tensor):
    """A tensor of the pretend device; `memory` is the CPU tensor with its numbers."""

    @staticmethod
    def __new__(cls, memory):
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            memory.shape,
            strides=memory.stride(),
            storage_offset=memory.storage_offset(),
            dtype=memory.dtype,
            layout=memory.layout,
            device=torch.device(NAME, 0),
        )
        wrapper.memory = memory
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self):
        return f"PretendTensor({self.memory})"

    def tolist(self):
        """Return the numbers, for which the host waits once; torch's own method refuses subclasses."""
        SYNCS["tolist"] += 1
        return self.memory.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, *args, **(kwargs or {}))


def _run(operation, *args, **kwargs):
    """Run an operation on the memory of its arguments, after the checks that a device would make."""
    tensors = [leaf for leaf in tree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    packet, target = operation.overloadpacket, kwargs.get("device")
    on_device = bool(ours) if target is None else torch.device(target).type == NAME
    if packet in COPYING:
        _count_copy(packet, on_device, args, kwargs)
    elif ours:
        if any(tensor.ndim > 0 and not isinstance(tensor, PretendTensor) for tensor in tensors):
            raise RuntimeError(f"{operation} needs all tensors on one device, but got some on {NAME} and some on cpu")
        masks = packet in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        if packet in WAITING or masks:
            SYNCS[str(packet)] += 1

    def inner(leaf):
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        return leaf.memory if isinstance(leaf, PretendTensor) else leaf

    wrappers = {id(tensor.memory): tensor for tensor in ours}

    def outer(leaf):
        if not isinstance(leaf, torch.Tensor):
            return leaf
        in_place = wrappers.get(id(leaf))  # or `out`
        return PretendTensor(leaf) if in_place is None and on_device else leaf if in_place is None else in_place

    args, kwargs = tree.tree_map(inner, args), tree.tree_map(inner, kwargs)
    if packet in (aten._copy_from, aten._copy_from_and_resize):  # CPU memory has no such kernel
        return outer(args[1].copy_(args[0]))
    return tree.tree_map(outer, operation(*args, **kwargs))


def _count_copy(packet, on_device, args, kwargs):
    """Count a copy between host and device for which the host waits, which is any that isn't `non_blocking`."""
    if packet is aten._to_copy:
        from_device, to_device = isinstance(args[0], PretendTensor), on_device
    else:
        from_device, to_device = (isinstance(argument, PretendTensor) for argument in args[:2])
        if packet is aten.copy_:
            from_device, to_device = to_device, from_device
    waits = not kwargs.get("non_blocking", args[2] if packet is not aten._to_copy and len(args) > 2 else False)
    if from_device != to_device and waits:
        SYNCS["copy to the host" if from_device else "copy to the device"] += 1


class _Module(_DummyBackendModule):
    """What torch.autocast asks of a device."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


class _Generator(_HostGenerator):
    """A generator of the CPU, also where one of the pretend device is asked for."""

    def __new__(cls, device="cpu"):
        return _HostGenerator.__new__(cls, "cpu" if torch.device(device).type == NAME else device)


@cache
def register() -> str:
    """Register the device with torch, once in a process, and return its name."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    fallback, copies = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    fallback.fallback(_run, "PrivateUse1")
    for operation in (aten._copy_from.default, aten._copy_from_and_resize.default):  # torch's fallback misses them
        copies.impl(operation, partial(_run, operation), "PrivateUse1")
    _LIBRARIES.extend((fallback, copies))
    torch.Generator = _Generator  # type: ignore[misc]
    return NAME
