"""Timings, side by side. Benchmarks are not tests: nothing here passes or fails."""
