"""The closed set of errors and the one warning category of jaxorch.

Every error raised on purpose derives from `JaxorchError`. A message says what failed, where, what was found and what
was expected, and what to do about it.
"""


class JaxorchError(Exception):
    """Base of every error that jaxorch raises on purpose."""


class OptionError(JaxorchError, ValueError):
    """An option, or a JAXORCH_* environment variable, has a value that is not one of the valid ones."""


class TraceError(JaxorchError):
    """A jaxpr could not be read into the primitive graph."""


class UnsupportedError(JaxorchError):
    """The program, or the place it is used in, is one that jaxorch does not optimise."""


class CompileError(JaxorchError):
    """A generated kernel did not compile, or does not fit the device."""


class LaunchError(JaxorchError):
    """A compiled kernel could not be launched, or failed while it ran."""


class PlanError(JaxorchError):
    """No valid execution plan was found, or a plan breaks one of its own conditions."""


class VerifyError(JaxorchError):
    """A graph, a view or a kernel's results failed verification."""


class StoreError(JaxorchError):
    """The store of plans, timings and kernels on disk could not be read or written."""


class JaxorchWarning(UserWarning):
    """Something was left to XLA, or was found on disk and not used; the program's results are not affected."""
