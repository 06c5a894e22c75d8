"""The rivals' view of the warehouse: the product's own snapshots as arrays."""

from datetime import date
from typing import Any

import numpy as np

from winback.models.peers_data import PeerData
from winback.operators.run import Run
from winback.operators.snapshots import PROFIT_FEATURES, Catalogue, read_catalogue
from winback.operators.warehouse import read_table

FEATURES = (*PROFIT_FEATURES, "category_id")

LOG = f"""
select
    customer_id, snapshot_date - date '1970-01-01' as day, coupon_id, propensity,
    order_placed, order_profit, coupon_cost, {", ".join(FEATURES)}
from {{schema}}.customer_snapshots
where is_on_grid and reward is not null and snapshot_date + {{decision_days}} <= {{as_of}}
order by snapshot_date, customer_id
"""
NOW = f"""
select customer_id, {", ".join(FEATURES)}
from {{schema}}.customer_snapshots
where snapshot_date = {{as_of}}
order by customer_id
"""


def read_peer_data(run: Run, budget: float) -> tuple[PeerData, list[str]]:
    """The log and the customers to decide for, and these customers' ids."""
    catalogue, settings = read_catalogue(run), run.settings
    names = {**run.names, "decision_days": settings.decision_days}
    log, now = read_table(run.url, LOG, names), read_table(run.url, NOW, run.names)
    return _peer_data(log, now, catalogue, budget, run), now["customer_id"].to_pylist()


def _peer_data(log: Any, now: Any, catalogue: Catalogue, budget: float, run: Run) -> PeerData:
    customer = log["customer_id"].combine_chunks().dictionary_encode().indices
    return PeerData(
        names=FEATURES,
        features=_features(log),
        coupon=catalogue.index_of(log["coupon_id"]),
        propensity=log["propensity"].to_numpy().astype(np.float64),
        purchased=log["order_placed"].to_numpy(),
        margin=log["order_profit"].to_numpy(),
        cost=log["coupon_cost"].to_numpy(),
        customer=customer.to_numpy().astype(np.int64),
        day=log["day"].to_numpy().astype(np.int64),
        now=_features(now),
        face_values=np.array(catalogue.face_values),
        contact_costs=np.array(catalogue.contact_costs),
        budget=budget,
        decision_days=run.settings.decision_days,
        seed=date.fromisoformat(run.as_of).toordinal(),
    )


def _features(rows: Any) -> Any:
    return np.column_stack([rows[name].to_numpy().astype(np.float64) for name in FEATURES])
