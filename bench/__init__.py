"""Benchmarks: each prints one table and writes JSON; none is a test."""
