"""Passes: functions `graph, options -> graph`, listed in order in `pipeline.PASSES`."""
