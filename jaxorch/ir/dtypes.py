from jaxorch.codegen.dtypes import *  # noqa
from jaxorch.codegen.dtypes import TRITON_NAME, compute_dtype, unsupported_reason, is_float  # noqa
