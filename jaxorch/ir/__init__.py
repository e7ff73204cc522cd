"""The intermediate representation: index expressions, views (virtual tensors) and the primitive graph."""
