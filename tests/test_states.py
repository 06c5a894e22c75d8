"""State keys: one customer and millions of rows give the same text."""

import time

import numpy as np
import pytest

from winback.models.errors import DataError, SettingsError
from winback.models.states import ROOT, StateSpace, parse_key

SPACE = StateSpace(
    {
        "days_since_last_purchase": (7, 14, 28),
        "purchases_last_30d": (1, 2, 4),
        "avg_order_value": (25, 50),
        "remaining_budget_pct": (0.25, 0.5),
        "coupons_last_30d": (1,),
    }
)
CUSTOMER = {
    "days_since_last_purchase": 7,
    "purchases_last_30d": 1,
    "avg_order_value": 49.99,
    "remaining_budget_pct": None,
    "coupons_last_30d": 3,
    "category": "GROCERY",
}
KEY = (
    "days_since_last_purchase=[7,14)|purchases_last_30d=[1,2)|avg_order_value=[25,50)"
    "|remaining_budget_pct=unknown|coupons_last_30d=[1,inf)|category=GROCERY"
)


def columns(n, seed=0):
    rng = np.random.default_rng(seed)
    names = np.array(["GROCERY", "A|B", "x=1", "50%", "%7C", "Käse", "all", "", None], dtype=object)
    budget = rng.choice([0.0, 0.25, 0.3, 0.5, 1.0, None], n)
    return {
        "days_since_last_purchase": rng.integers(1, 40, n),
        "purchases_last_30d": rng.integers(0, 6, n),
        "avg_order_value": rng.choice([0.0, 24.999, 25.0, 50.0, 1e9], n),
        "remaining_budget_pct": budget,
        "coupons_last_30d": rng.integers(0, 3, n),
        "category": rng.choice(names, n),
    }


def test_key_is_readable_and_right_open():
    assert SPACE.key(CUSTOMER) == KEY
    day_before = SPACE.key({**CUSTOMER, "days_since_last_purchase": 6})
    assert day_before.startswith("days_since_last_purchase=[-inf,7)|")


def test_one_customer_gets_the_key_of_the_vectorised_path():
    data = columns(500)
    encoded = SPACE.encode(data)
    single = [SPACE.key({name: data[name][i] for name in data}) for i in range(500)]
    assert encoded.labels().tolist() == single
    assert encoded.keys == sorted(set(single))


def test_different_features_never_share_a_key():
    """Counted by brute force over the decoded parts."""
    keys = SPACE.encode(columns(3000)).keys
    assert len({tuple(parse_key(key).items()) for key in keys}) == len(keys)


def test_row_order_does_not_change_the_keys():
    data = columns(400)
    order = np.random.default_rng(1).permutation(400)
    shuffled = SPACE.encode({name: data[name][order] for name in data})
    assert shuffled.keys == SPACE.encode(data).keys
    assert shuffled.labels().tolist() == SPACE.encode(data).labels()[order].tolist()


def test_a_reader_that_was_sent_the_bins_builds_the_same_keys():
    reader = StateSpace.from_dict(SPACE.to_dict())
    assert reader.key(CUSTOMER) == KEY
    assert reader.parent(KEY) == SPACE.parent(KEY)


def test_parents_climb_to_the_root():
    parent = SPACE.parent(KEY)
    assert parent == "days_since_last_purchase=[7,14)|purchases_last_30d=[1,2)"
    assert SPACE.parent(parent) == ROOT
    assert SPACE.parent(ROOT) == ROOT


def test_parents_number_the_keys():
    keys = SPACE.encode(columns(300)).keys
    number, parents = SPACE.parents(keys)
    assert [parents[i] for i in number] == [SPACE.parent(key) for key in keys]


WORDS = [
    (KEY, "last purchase 7–13 days ago, 1 order in 30 days, average order 25 to 50, "
          "no budget known, 1 or more coupons in 30 days, last bought GROCERY"),
    ("days_since_last_purchase=[28,inf)|purchases_last_30d=[-inf,1)",
     "last purchase 28 or more days ago, no order in 30 days"),
    ("days_since_last_purchase=[-inf,7)|remaining_budget_pct=[0.25,0.5)",
     "last purchase up to 6 days ago, 25 to 50% of the budget left"),
    ("purchases_last_30d=[2,4)|avg_order_value=[-inf,25)",
     "2–3 orders in 30 days, average order below 25"),
    (ROOT, "all customers"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "words"), WORDS)
def test_described_in_words(key, words):
    assert SPACE.describe(key) == words


def test_200_000_rows_are_coded_in_seconds():
    data, start = columns(200_000), time.perf_counter()
    SPACE.encode(data)
    assert time.perf_counter() - start < 5


def test_empty_input_has_no_states():
    encoded = SPACE.encode(columns(0))
    assert (encoded.codes.size, encoded.keys) == (0, [])


def test_bad_features_are_refused():
    data = columns(3)
    data["avg_order_value"][1] = np.nan
    with pytest.raises(DataError, match=r"expected no nulls; see rows 1 \(1 row\)"):
        SPACE.encode(data)
    with pytest.raises(DataError, match="avg_order_value: expected a number; got None"):
        SPACE.key({**CUSTOMER, "avg_order_value": None})
    with pytest.raises(DataError, match="missing category"):
        SPACE.encode({name: data[name] for name in data if name != "category"})
    with pytest.raises(DataError, match=r"expected feature=bin\|feature=bin"):
        SPACE.describe("7|1|49")
    with pytest.raises(SettingsError, match="days: expected increasing edges"):
        StateSpace({"days": (7, 7)})
