"""Amounts of money in words."""


def money(amount: float, currency: str = "") -> str:
    """An amount for people: two decimals, thousands apart, a true minus and no minus zero."""
    sign = "−" if round(amount, 2) < 0 else ""
    return f"{sign}{abs(amount):,.2f} {currency}".rstrip()
