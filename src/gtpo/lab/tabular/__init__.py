"""A bench for estimators of the advantage: multi-turn decision processes so small that everything about them is known.

The policy is a table, success rates and true gradients are computed and not sampled, and the expectation of an
estimator over whole groups is a sum over all groups there are. Rewards, returns and advantages are those of
`gtpo.functional` and `gtpo.credit_assignment`; only candidates that are not part of the algorithm are here
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
