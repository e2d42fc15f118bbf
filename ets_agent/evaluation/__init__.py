"""Evaluation: problem sets, baselines and the statistics that compare them."""

from ets_agent.evaluation.methods import METHODS, Method, Solution, check_methods
from ets_agent.evaluation.problem_files import FileProblem, read_problems
from ets_agent.evaluation.report import EvalReport, ItemRecord
from ets_agent.evaluation.runner import Problem, evaluate
from ets_agent.evaluation.statistics import Interval, wilson_interval

__all__ = [
    "METHODS",
    "EvalReport",
    "FileProblem",
    "Interval",
    "ItemRecord",
    "Method",
    "Problem",
    "Solution",
    "check_methods",
    "evaluate",
    "read_problems",
    "wilson_interval",
]
