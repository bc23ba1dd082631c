"""Pure statistics: numpy in, records out; no files, no clock, no global randomness.

delta is always candidate - baseline with higher better. Every estimator accepts a leading simulation axis.
"""

from checkweigh.stats.estimators.binary import (
    clustered_tango,
    effective_binary_n,
    least_n_without_flips,
)
from checkweigh.stats.estimators.block_rates import block_rates
from checkweigh.stats.estimators.blocks import MIN_BLOCKS, block_log_ratio
from checkweigh.stats.estimators.identical import MIN_CLUSTERS, differing_share_upper
from checkweigh.stats.estimators.paired import MIN_EFFECTIVE_CLUSTERS, clustered_mean
from checkweigh.stats.estimators.proportion import clustered_proportion
from checkweigh.stats.estimators.ratio import ratio_difference
from checkweigh.stats.evidence import Evidence
from checkweigh.stats.multiplicity import holm
from checkweigh.stats.partition import Partition
from checkweigh.stats.power import (
    items_to_settle,
    minimum_detectable,
    pass_probability,
    required_n,
    required_n_binary,
    standard_errors_needed,
)
from checkweigh.stats.sequential import nominal_level

__all__ = [
    "MIN_BLOCKS",
    "MIN_CLUSTERS",
    "MIN_EFFECTIVE_CLUSTERS",
    "Evidence",
    "Partition",
    "block_log_ratio",
    "block_rates",
    "clustered_mean",
    "clustered_proportion",
    "clustered_tango",
    "differing_share_upper",
    "effective_binary_n",
    "holm",
    "items_to_settle",
    "least_n_without_flips",
    "minimum_detectable",
    "nominal_level",
    "pass_probability",
    "ratio_difference",
    "required_n",
    "required_n_binary",
    "standard_errors_needed",
]
