"""One arm's proportion against a limit."""

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from checkweigh.stats.estimators.proportion import clustered_proportion
from checkweigh.stats.partition import Partition


def _values(ones: int, n: int) -> np.ndarray:
    return np.repeat([1.0, 0.0], [ones, n - ones])


@pytest.mark.parametrize("ones", [0, 3, 50, 100])
def test_bounds_of_independent_items_are_wilsons(ones: int) -> None:
    found = clustered_proportion(_values(ones, 100), Partition.singletons(100), limit=0.1, sign=1.0)
    low, high = proportion_confint(ones, 100, alpha=0.10, method="wilson")
    assert float(found.lower) == pytest.approx(low - 0.1, abs=1e-12)
    assert float(found.upper) == pytest.approx(high - 0.1, abs=1e-12)


def test_test_and_bound_agree_and_signs_mirror() -> None:
    for ones in range(60):
        values, partition = _values(ones, 400), Partition.singletons(400)
        low = clustered_proportion(values, partition, limit=0.05, sign=-1.0)
        assert (float(low.p_noninferior) < 0.05) == (float(low.lower) > 0)
        mirrored = clustered_proportion(1 - values, partition, limit=0.95, sign=1.0)
        assert float(mirrored.p_noninferior) == pytest.approx(float(low.p_noninferior))


def test_clusters_that_agree_count_as_fewer_items() -> None:
    values = np.repeat(_values(10, 100), 5)
    clustered = clustered_proportion(
        values, Partition.from_labels([str(i // 5) for i in range(500)]), limit=0.15, sign=-1
    )
    alone = clustered_proportion(values, Partition.singletons(500), limit=0.15, sign=-1)
    assert float(clustered.design_effect) > 4
    assert float(clustered.p_noninferior) > float(alone.p_noninferior)


def test_missing_values_and_single_clusters_say_nothing() -> None:
    values = _values(5, 50)
    values[0] = np.nan
    assert not clustered_proportion(values, Partition.singletons(50), limit=0.2, sign=1.0).estimable
    one = Partition.from_labels(["a"] * 50)
    assert not clustered_proportion(_values(5, 50), one, limit=0.2, sign=1.0).estimable


@pytest.mark.parametrize("limit", [0.0, 1.0, float("nan")])
def test_limits_that_are_none_are_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="limit"):
        clustered_proportion(_values(5, 50), Partition.singletons(50), limit=limit, sign=1.0)
