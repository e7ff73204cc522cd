"""A program in JAX as the same program in torch: its jaxpr, equation by equation, as torch operations.

Input: a jaxpr.  Output: a function of tensors, or a `NotTranslatedError` that names the primitives without a rule.
Invariant: every result has the shape and dtype that the jaxpr says.

What is translated is the lax program. Attention spelled out by hand stays products, a softmax of maximum, exponential
and sum, and a mask; no call of a fused operation of torch's (scaled_dot_product_attention, layer_norm) is put in its
place. Torch's compiler looks for attention by patterns of its own, which are not lax's spelling.
"""
