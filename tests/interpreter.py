"""Triton's interpreter, mended for new versions of NumPy and watchful of memory.

On a GPU a read outside of a tensor passes every numerical test, until one day it does not. In the
interpreter every address is a number that can be looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from triton.runtime import interpreter


def mend() -> None:
    """Let a tensor of one element be a bound of `tl.range`; NumPy 2.4 refuses such arrays."""
    original = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def watch() -> None:
    """Raise IndexError when a kernel touches memory outside of the tensors it was given."""
    arguments = interpreter.GridExecutor._init_args_hst
    load = interpreter.InterpreterBuilder.create_masked_load
    store = interpreter.InterpreterBuilder.create_masked_store
    allowed: list[tuple[int, int]] = []

    def init_args_hst(self: Any, args: Any, kwargs: Any) -> Any:
        host, host_kwargs = arguments(self, args, kwargs)
        allowed[:] = [
            (x.untyped_storage().data_ptr(), x.untyped_storage().nbytes())
            for x in (*host, *host_kwargs.values())
            if hasattr(x, "untyped_storage")
        ]
        return host, host_kwargs

    def check(what: str, pointers: Any, mask: Any) -> None:
        size = interpreter._get_np_dtype(pointers.get_element_ty()).itemsize
        on = mask.data.astype(bool)
        at = np.broadcast_to(pointers.data, on.shape)[on].astype(np.int64)
        inside = np.zeros(at.shape, dtype=bool)
        for start, length in allowed:
            inside |= (at >= start) & (at + size <= start + length)
        if not inside.all():
            raise IndexError(f"{what} of {(~inside).sum()} elements outside of all tensors")

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        check("load", pointers, mask)
        return load(self, pointers, mask, *rest)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check("store", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    interpreter.GridExecutor._init_args_hst = init_args_hst
    interpreter.InterpreterBuilder.create_masked_load = masked_load
    interpreter.InterpreterBuilder.create_masked_store = masked_store
