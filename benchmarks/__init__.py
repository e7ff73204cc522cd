"""The measured cases, the correctness gate before every timing, and the script that times jaxorch against `jax.jit`."""
