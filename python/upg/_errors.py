"""What can go wrong. Every message ends with what to do."""


class UpgError(Exception):
    """The base of all exceptions of this package."""


class ModelError(UpgError):
    """A model's files are damaged, of an unknown kind, or cannot be read."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """There is no such file."""


class OptionError(UpgError, ValueError):
    """An option has a value that makes no sense."""


class PromptError(UpgError, ValueError):
    """A prompt, text or conversation that the model cannot take: empty, too long, refused by the chat template."""


class DeviceError(UpgError, RuntimeError):
    """The device failed, or cannot do what was asked: too little memory, for instance."""


class BusyError(UpgError, RuntimeError):
    """Open streams use all sequences of the model: read them to their end, close them, or load with more sequences."""


class ClosedError(UpgError, RuntimeError):
    """The model was closed."""
