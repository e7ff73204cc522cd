from jaxorch.codegen.numpy_scalars import NUMPY as SCALARS  # noqa
