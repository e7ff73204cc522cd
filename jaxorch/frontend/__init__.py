"""The frontend: a jaxpr becomes a flat trace (`trace`), the trace a primitive graph (`lift`)."""
