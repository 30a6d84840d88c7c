"""Compress language models to about three bits a weight, and run them as fast as memory can be read.

>>> import upg
>>> model = upg.load(path)
>>> model.generate("The capital of France is", temperature=0, max_tokens=2).text
' Paris.'

:func:`load` gives a :class:`Model`; :func:`compress` makes the file that it loads; :func:`inspect`, :func:`bench` and
:func:`devices` are the commands of those names. ``python -m upg`` is the command line itself.
"""

from upg._commands import bench, compress, devices, inspect
from upg._errors import (
    BusyError,
    ClosedError,
    DeviceError,
    ModelError,
    ModelNotFoundError,
    OptionError,
    PromptError,
    UpgError,
)
from upg._model import Model, load
from upg._options import GenerateOptions
from upg._results import Completion, Piece, Score, Stats, Token
from upg._stream import Stream
from upg._upg import Tokenizer, __version__

__all__ = [
    "BusyError",
    "ClosedError",
    "Completion",
    "DeviceError",
    "GenerateOptions",
    "Model",
    "ModelError",
    "ModelNotFoundError",
    "OptionError",
    "Piece",
    "PromptError",
    "Score",
    "Stats",
    "Stream",
    "Token",
    "Tokenizer",
    "UpgError",
    "__version__",
    "bench",
    "compress",
    "devices",
    "inspect",
    "load",
]
