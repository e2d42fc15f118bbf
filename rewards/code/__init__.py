"""Rewards for programs: by tests, or by agreement on what they do."""

from rewards.code.consistency import CodeConsistency
from rewards.code.unit_tests import CodeTests

__all__ = ["CodeConsistency", "CodeTests"]
