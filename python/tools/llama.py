"""llama.cpp through llama-cpp-python's low-level API: quantising, importance matrices, raw logits."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
from divergence import Rows

F32 = 0
"""The ggml type, and the name of the file type that stores all matrices in it."""


class _Tensor(ctypes.Structure):
    """The head of ggml's `struct ggml_tensor`, down to its name."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


def silence() -> None:
    """No messages but those of errors that come back."""
    llama_cpp.llama_log_set(_IGNORE, ctypes.c_void_p(0))


def _ignore(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    pass


# llama.cpp calls it as long as the program runs.
_IGNORE = llama_cpp.llama_log_callback(_ignore)


class Importance:
    """Mean squares of each matrix's inputs, by the matrix's name: llama.cpp's importance matrix, as its `llama-imatrix`
    gathers it (matrices of the layers; not the embedding, nor a head)."""

    def __init__(self) -> None:
        self._sums: dict[bytes, npt.NDArray[np.float64]] = {}
        self._tokens: dict[bytes, int] = {}

    def callback(self) -> Callable[[int, bool, int], bool]:
        """What a context is to call for each node of its graph."""

        def see(address: int, ask: bool, _data: int) -> bool:
            node = ctypes.cast(address, ctypes.POINTER(_Tensor)).contents
            weights, inputs = node.src[0], node.src[1]
            if not weights or not inputs:
                return not ask
            name, x = weights.contents.name, inputs.contents
            is_matrix = name.startswith(b"blk.") and name.endswith(b".weight") and weights.contents.ne[1] > 1
            if not is_matrix or x.type != F32 or x.ne[0] != weights.contents.ne[0]:
                return not ask
            if not ask:
                self._add(name, x)
            return True

        return see

    def _add(self, name: bytes, x: _Tensor) -> None:
        width, tokens = x.ne[0], x.ne[1]
        numbers = np.ctypeslib.as_array(ctypes.cast(x.data, ctypes.POINTER(ctypes.c_float)), (tokens, width))
        squares = np.einsum("tw,tw->w", numbers, numbers, dtype=np.float64)
        self._sums[name] = self._sums.get(name, np.zeros(width)) + squares
        self._tokens[name] = self._tokens.get(name, 0) + tokens

    def as_array(self) -> ctypes.Array[llama_cpp.llama_model_imatrix_data]:
        """What quantising takes. It points into this object's memory."""
        self._means = {name: (s / self._tokens[name]).astype(np.float32) for name, s in self._sums.items()}
        array = (llama_cpp.llama_model_imatrix_data * (len(self._means) + 1))()
        for entry, (name, means) in zip(array, self._means.items(), strict=False):
            entry.name, entry.size = name, len(means)
            entry.data = means.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        return array


def quantise(source: Path, out: Path, file_type: str, importance: Importance | None, threads: int) -> None:
    """Writes `source`, a GGUF file, as `file_type`, such as "Q4_K_M"; "F32" for no quantisation."""
    params = llama_cpp.llama_model_quantize_default_params()
    name = "LLAMA_FTYPE_ALL_F32" if file_type == "F32" else f"LLAMA_FTYPE_MOSTLY_{file_type}"
    params.ftype = getattr(llama_cpp, name)
    params.nthread = threads
    params.allow_requantize = True
    if importance is not None:
        array = importance.as_array()
        params.imatrix = ctypes.cast(array, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    if failed:
        raise SystemExit(f"llama.cpp cannot write {source} as {file_type} to {out}: leave the type out of --types")


class Model:
    """A GGUF file in memory."""

    def __init__(self, path: Path, ctx: int, threads: int, importance: Importance | None = None) -> None:
        params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}: give a GGUF file")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = ctx
        context.n_threads = context.n_threads_batch = threads
        # Exact keys and values: this is about the weights.
        context.type_k = context.type_v = F32
        if importance is not None:
            # The context calls it as long as it lives.
            self._callback = llama_cpp.ggml_backend_sched_eval_callback(importance.callback())
            context.cb_eval = self._callback
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        self.parameters: int = llama_cpp.llama_model_n_params(self._model)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def tokens(self, text: str) -> list[int]:
        """The text's tokens, no special ones among them."""
        data = text.encode()
        room = (llama_cpp.llama_token * (len(data) + 1))()
        count = llama_cpp.llama_tokenize(self._vocabulary, data, len(data), room, len(room), False, False)
        return room[:count]

    def bos(self) -> int | None:
        """The token that texts begin with, where the model wants one."""
        if not llama_cpp.llama_vocab_get_add_bos(self._vocabulary):
            return None
        return int(llama_cpp.llama_vocab_bos(self._vocabulary))

    def logits(self, chunks: list[list[int]], wanted: range) -> Iterator[Rows]:
        """For each chunk, the logits after those of its tokens that are `wanted`."""
        for chunk in chunks:
            batch = llama_cpp.llama_batch_init(len(chunk), 0, 1)
            batch.n_tokens = len(chunk)
            for i, token in enumerate(chunk):
                batch.token[i], batch.pos[i] = token, i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = i in wanted
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
            failed = llama_cpp.llama_decode(self._context, batch)
            llama_cpp.llama_batch_free(batch)
            if failed:
                raise SystemExit(f"llama.cpp's llama_decode failed with {failed}: try a smaller --ctx")
            rows = llama_cpp.llama_get_logits(self._context)
            yield np.ctypeslib.as_array(rows, (len(wanted), self.vocab)).copy()
