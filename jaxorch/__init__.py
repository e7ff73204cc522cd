"""jaxorch: a JAX function transformation that plans, writes and launches fused kernels.

Importing it does nothing else: Triton, the solver and JAX's backends are first touched when a function is planned.
"""

from jaxorch.api import explain, optimize
from jaxorch.errors import (
    CompileError,
    JaxorchError,
    JaxorchWarning,
    LaunchError,
    OptionError,
    PlanError,
    StoreError,
    TraceError,
    UnsupportedError,
    VerifyError,
)
from jaxorch.options import Options

__version__ = "0.1.0"

__all__ = [
    "CompileError",
    "JaxorchError",
    "JaxorchWarning",
    "LaunchError",
    "OptionError",
    "Options",
    "PlanError",
    "StoreError",
    "TraceError",
    "UnsupportedError",
    "VerifyError",
    "__version__",
    "explain",
    "optimize",
]
