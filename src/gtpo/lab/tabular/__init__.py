"""A test bench for advantage estimators: multi-turn decision processes small enough to compute everything exactly.

The policy is a table. Success rates and true gradients are computed instead of sampled, and the expectation of an
estimator over whole groups is a sum over all possible groups. Rewards, returns and advantages are those of
`gtpo.functional` and `gtpo.credit_assignment`; only candidates that are not part of the algorithm are defined here
(`candidates`).
"""

from gtpo.lab.tabular.estimators import estimator
from gtpo.lab.tabular.gradients import Expectation, enumerate_expectation, group_gradients, sampled_expectation
from gtpo.lab.tabular.learning import Curves, learn
from gtpo.lab.tabular.process import ACTIONS, CallProcess, Rollouts, policy_with_success
from gtpo.lab.tabular.rows import CANDIDATES, candidate

__all__ = [
    "ACTIONS",
    "CANDIDATES",
    "CallProcess",
    "Curves",
    "Expectation",
    "Rollouts",
    "candidate",
    "enumerate_expectation",
    "estimator",
    "group_gradients",
    "learn",
    "policy_with_success",
    "sampled_expectation",
]
