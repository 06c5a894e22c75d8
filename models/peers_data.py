"""What the rival policies learn from: a log of past decisions, and the customers to decide for."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from winback.models.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class PeerData:
    """m logged decisions whose window is over, and n customers at the decision date.

    Attributes:
        names: the F features, the product's own (columns of ``customer_snapshots``).
        features: (m, F) of the log; NaN = unknown.
        coupon: (m,) index of the coupon offered, 0 = none.
        propensity: (m,) chance with which it was drawn; NaN where that was not logged.
        purchased: (m,) at least one purchase in the window.
        margin: (m,) margin of the window, currency.
        cost: (m,) redeemed coupon money of the window, currency.
        customer: (m,) any number per customer.
        day: (m,) decision date as a day number.
        now: (n, F) features at the decision date.
        face_values: (A,) currency, 0 for `none`.
        contact_costs: (A,) currency.
        budget: expected redeemed coupon money for the n customers together.
        decision_days: length of a window.
        seed: of every random number.
    """

    names: tuple[str, ...]
    features: Floats
    coupon: Ints
    propensity: Floats
    purchased: Bools
    margin: Floats
    cost: Floats
    customer: Ints
    day: Ints
    now: Floats
    face_values: Floats
    contact_costs: Floats
    budget: float
    decision_days: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        if self.features.shape[1:] != (len(self.names),) or self.now.shape[1:] != (
            len(self.names),
        ):
            raise DataError(
                f"expected {len(self.names)} features per row ({', '.join(self.names[:5])}, …), "
                f"came {self.features.shape[1:]} in the log and {self.now.shape[1:]} now"
            )
        if len(self.features) == 0:
            raise DataError("expected logged decisions to learn from, found none")

    @property
    def customers(self) -> int:
        """n, how many customers are decided for."""
        return len(self.now)

    @property
    def coupons(self) -> int:
        """A, `none` included."""
        return len(self.face_values)

    @property
    def reward(self) -> Floats:
        """(m,) profit of the window: margin less redeemed money less contact."""
        profit: Floats = self.margin - self.cost - self.contact_costs[self.coupon]
        return profit

    def column(self, name: str) -> Floats:
        """(n,) one feature at the decision date."""
        values: Floats = self.now[:, self.names.index(name)]
        return values

    def logged(self, name: str) -> Floats:
        """(m,) one feature in the log."""
        values: Floats = self.features[:, self.names.index(name)]
        return values
