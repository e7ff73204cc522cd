"""Derivations on the trace: another program of the same meaning, in lax, so that XLA's libraries can run it too.

Input: a trace.  Output: another trace, or the same.  Invariant: the new equations stand where those that they replace
stood, and carry their source lines; every other equation is the user's own.
"""
