"""The planner's states: binned customer features, written as a readable key.

A key reads ``days_since_last_purchase=[7,14)|purchases_last_30d=[1,2)|…|category=GROCERY``: one
part per feature, right-open bins, ``|``, ``=`` and ``%`` in category names percent-encoded. The
parent of a key keeps only the coarse features; the parent of that is the root, ``all``.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from winback.models.errors import DataError, SettingsError, first_rows

Codes = npt.NDArray[np.int64]

ROOT = "all"
UNKNOWN = "unknown"
CATEGORY = "category"
COARSE = ("days_since_last_purchase", "purchases_last_30d")  # recency and frequency carry most
# A parent also tells who has probably left: what a coupon does to the others does not carry over.
PARENT = (*COARSE, "p_alive")
NULLABLE = ("remaining_budget_pct",)  # null where no budget row covers the date
ESCAPES = str.maketrans({"%": "%25", "|": "%7C", "=": "%3D"})  # as in URLs: readers can decode


@dataclass(frozen=True)
class EncodedStates:
    """The states of n rows: row i has the key ``keys[codes[i]]``; keys are sorted and distinct."""

    codes: Codes  # (n,)
    keys: list[str]

    def labels(self) -> npt.NDArray[np.object_]:
        """The key of every row, (n,)."""
        return np.array(self.keys, dtype=object)[self.codes]


class StateSpace:
    """Features and their bins, in key order; the category comes last.

    ``bins`` maps a numeric feature to its inner edges in increasing order: edges (7, 14) make the
    bins [-inf,7), [7,14) and [14,inf). ``categorical`` names the features kept as their own name.
    """

    def __init__(
        self,
        bins: Mapping[str, Sequence[float]],
        *,
        categorical: Sequence[str] = (CATEGORY,),
        coarse: Sequence[str] = PARENT,
        nullable: Sequence[str] = NULLABLE,
    ) -> None:
        self.bins = {name: _checked_edges(name, edges) for name, edges in bins.items()}
        self.categorical = tuple(categorical)
        self.nullable = tuple(nullable)
        self.features = (*self.bins, *self.categorical)
        self.coarse = tuple(name for name in self.features if name in coarse)
        self._labels = {name: _bin_labels(edges) for name, edges in self.bins.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: what a reader needs to build the same keys."""
        return {
            "bins": {name: list(edges) for name, edges in self.bins.items()},
            "categorical": list(self.categorical),
            "coarse": list(self.coarse),
            "nullable": list(self.nullable),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "StateSpace":
        """The inverse of to_dict."""
        options = {name: values[name] for name in ("categorical", "coarse", "nullable")}
        return cls(values["bins"], **options)

    def encode(self, columns: Mapping[str, npt.ArrayLike]) -> EncodedStates:
        """States of n rows from one column, (n,), per feature; other columns are ignored.

        Raises DataError for a missing column and for nulls where the feature allows none.
        """
        self._require(columns)
        coded = [self._code(name, columns[name]) for name in self.features]
        combined = np.zeros(coded[0][0].shape, dtype=np.int64)
        for codes, labels in coded:
            combined = combined * len(labels) + codes
        distinct, row = np.unique(combined, return_inverse=True)
        keys = self._keys(distinct, [labels for _, labels in coded])
        order = sorted(range(len(keys)), key=keys.__getitem__)
        rank = np.empty(len(keys), dtype=np.int64)
        rank[order] = np.arange(len(keys))
        return EncodedStates(rank[row], [keys[i] for i in order])

    def key(self, features: Mapping[str, Any]) -> str:
        """The key of one customer from a mapping of features; the same as encode gives."""
        self._require(features)
        return _join((name, self._label(name, features[name])) for name in self.features)

    def parent(self, key: str) -> str:
        """The next coarser key: coarse features only, then the root (its own parent)."""
        parts = parse_key(key)
        kept = [(name, parts[name]) for name in self.coarse if name in parts]
        return ROOT if len(kept) == len(parts) or not kept else _join(kept)

    def parents(self, keys: Sequence[str]) -> tuple[Codes, list[str]]:
        """Index of every key's parent, (S,), into the list of distinct sorted parents."""
        parent_of = [self.parent(key) for key in keys]
        distinct = sorted(set(parent_of))
        position = {key: i for i, key in enumerate(distinct)}
        return np.array([position[key] for key in parent_of], dtype=np.int64), distinct

    def describe(self, key: str) -> str:
        """The state in plain words: "last bought 7–13 days ago, 1 order in 30 days, …"."""
        if key == ROOT:
            return "all customers"
        return ", ".join(_in_words(name, label) for name, label in parse_key(key).items())

    def _require(self, columns: Mapping[str, Any]) -> None:
        missing = [name for name in self.features if name not in columns]
        if missing:
            expected = ", ".join(self.features)
            raise DataError(f"state features: expected {expected}; missing {', '.join(missing)}")

    def _code(self, name: str, values: npt.ArrayLike) -> tuple[Codes, list[str]]:
        if name in self.categorical:
            return _category_codes(values)
        number = np.asarray(values, dtype=np.float64)
        unknown = np.isnan(number)
        if unknown.any() and name not in self.nullable:
            rows: list[int] = np.flatnonzero(unknown).tolist()
            raise DataError(f"state feature {name}: expected no nulls; see rows {first_rows(rows)}")
        codes = np.searchsorted(self.bins[name], number, side="right")
        labels = self._labels[name]
        codes[unknown] = len(labels)
        return codes.astype(np.int64), [*labels, UNKNOWN]

    def _label(self, name: str, value: Any) -> str:
        if name in self.categorical:
            return _category_label(value)
        number = float("nan") if value is None else float(value)
        if number == number:
            return self._labels[name][bisect_right(self.bins[name], number)]
        if name not in self.nullable:
            raise DataError(f"state feature {name}: expected a number; got {value!r}")
        return UNKNOWN

    def _keys(self, combined: Codes, labels: list[list[str]]) -> list[str]:
        columns: list[list[str]] = []
        for own in reversed(labels):
            columns.append([own[code] for code in (combined % len(own)).tolist()])
            combined = combined // len(own)
        rows = zip(*reversed(columns), strict=True)
        return [_join(zip(self.features, row, strict=True)) for row in rows]


def parse_key(key: str) -> dict[str, str]:
    """Feature → bin or category of a key, categories decoded; the root has none.

    >>> parse_key("purchases_last_30d=[1,2)|category=A%7CB")
    {'purchases_last_30d': '[1,2)', 'category': 'A|B'}
    """
    if key == ROOT:
        return {}
    try:
        parts = [part.split("=") for part in key.split("|")]
        return {name: unquote(label) for name, label in parts}
    except ValueError:
        raise DataError(f"state key: expected feature=bin|feature=bin|…; got {key!r}") from None


def _join(parts: Iterable[tuple[str, str]]) -> str:
    return "|".join(f"{name}={label.translate(ESCAPES)}" for name, label in parts)


def _checked_edges(name: str, edges: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(edge) for edge in edges)
    if not numbers or not np.isfinite(numbers).all() or list(numbers) != sorted(set(numbers)):
        raise SettingsError(f"state bins of {name}: expected increasing edges; got {list(edges)}")
    return numbers


def _bin_labels(edges: tuple[float, ...]) -> list[str]:
    ends = ["-inf", *(f"{edge:.15g}" for edge in edges), "inf"]
    return [f"[{low},{high})" for low, high in pairwise(ends)]


def _category_label(value: Any) -> str:
    missing = value is None or value != value or value == ""  # NaN is not equal to itself
    return UNKNOWN if missing else str(value)


def _category_codes(values: npt.ArrayLike) -> tuple[Codes, list[str]]:
    """Codes by first appearance; a dictionary is faster than sorting millions of strings."""
    seen: dict[str, int] = {}
    names = np.asarray(values, dtype=object).tolist()
    codes = [seen.setdefault(_category_label(name), len(seen)) for name in names]
    return np.array(codes, dtype=np.int64), list(seen)


def _in_words(name: str, label: str) -> str:
    if name == CATEGORY:
        return f"last bought {label}"
    if label == UNKNOWN:
        return "no budget known" if name == "remaining_budget_pct" else f"{name} unknown"
    low, high = (float(end) for end in label.strip("[)").split(","))
    wording = _WORDS.get(name)
    return wording(low, high) if wording else f"{name.replace('_', ' ')} {_span(low, high)}"


def _span(low: float, high: float, unit: str = "") -> str:
    """A right-open interval of real numbers in words."""
    if low == -np.inf:
        return f"below {high:g}{unit}"
    return f"{low:g}{unit} or more" if high == np.inf else f"{low:g} to {high:g}{unit}"


def _count(low: float, high: float, one: str, many: str) -> str:
    """A right-open interval of whole numbers in words: [1,3) → 1–2."""
    first = max(0, int(np.ceil(low))) if low > -np.inf else 0
    if high == np.inf:
        return f"{first} or more {many}"
    last = int(np.ceil(high)) - 1
    if last <= first:
        return f"no {one}" if last <= 0 else f"{last} {one if last == 1 else many}"
    return f"up to {last} {many}" if first == 0 else f"{first}–{last} {many}"


_WORDS = {
    "days_since_last_purchase": lambda low, high: (
        f"last purchase {_count(low, high, 'day', 'days')} ago"
    ),
    "purchases_last_30d": lambda low, high: f"{_count(low, high, 'order', 'orders')} in 30 days",
    "coupons_last_30d": lambda low, high: f"{_count(low, high, 'coupon', 'coupons')} in 30 days",
    "avg_order_value": lambda low, high: f"average order {_span(low, high)}",
    "p_alive": lambda low, high: f"{_span(100 * low, 100 * high, '%')} likely still a customer",
    "remaining_budget_pct": lambda low, high: (
        f"{_span(100 * low, 100 * high, '%')} of the budget left"
    ),
}
