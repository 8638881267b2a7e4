"""Evaluation suites: Core, Core-Extended, Lambada, WikiText, validation perplexity, and those of the user's own."""

from isoloop.trainer.quality.suites.bundle import Bundle, find_suite
from isoloop.trainer.quality.suites.catalogue import SUITES
from isoloop.trainer.quality.suites.difference import Differences, compare_models
from isoloop.trainer.quality.suites.evaluation import Subject, evaluate_suite, read_results
from isoloop.trainer.quality.suites.summary import SuiteSummary
from isoloop.trainer.quality.suites.task import Suite, Task
