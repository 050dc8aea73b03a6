"""Verification of contributions: draws, audits by replay, verdicts, trust, final credit."""
