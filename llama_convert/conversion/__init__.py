"""Conversions between checkpoint formats: plan, execute, check, finalize."""
