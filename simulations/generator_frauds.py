"""Which payments are fraud: compromised terminals and compromised customers, planned ahead.

Scenario 1: any amount over LARGE_AMOUNT_MINOR.
Scenario 2: each day two terminals are compromised for 28 days; all their payments are fraud.
Scenario 3: each day three customers are compromised for 14 days; of their payments in these days,
taken together, a third (rounded down) have the amount multiplied by 5 and are fraud.
A later scenario overwrites an earlier one; a payment that is chosen twice is multiplied twice.

A third of two weeks can only be chosen by somebody who knows how many payments the two weeks will
have. The numbers of payments are therefore drawn before the payments themselves, and the plan names
the chosen ones by (day, customer, how many of that customer's payments of that day come before).
So a day can be generated without its neighbours, and chunks of any length give the same bytes.
Source: Fraud Detection Handbook, chapter 3, the simulated data set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LARGE_AMOUNT_MINOR = 22_000
TERMINALS_A_DAY, TERMINAL_DAYS = 2, 28
CUSTOMERS_A_DAY, CUSTOMER_DAYS = 3, 14
AMOUNT_FACTOR = 5

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FraudPlan:
    """The compromised terminals, and the payments that compromised customers did not make.

    terminals: (days, 2) terminals compromised from each day on.
    customer, rank: chosen payments, sorted by day, those of day d at
    `[first_of_day[d]:first_of_day[d + 1]]`; one that is chosen twice stands there twice.
    """

    terminals: Int64s
    first_of_day: Int64s
    customer: Int64s
    rank: Int64s

    def compromised_terminals(self, day: int, terminals: int) -> Bools:
        """(terminals,): which are compromised on `day`."""
        mask = np.zeros(terminals, dtype=np.bool_)
        mask[self.terminals[max(0, day - TERMINAL_DAYS + 1) : day + 1]] = True
        return mask

    def times_chosen(self, day: int, first_row: Int64s, rows: int) -> Int64s:
        """(rows,): how often each payment of `day` was chosen.

        first_row: (customers,) the first row of each customer's payments of that day.
        """
        chosen = slice(self.first_of_day[day], self.first_of_day[day + 1])
        row = first_row[self.customer[chosen]] + self.rank[chosen]
        return np.bincount(row, minlength=rows)


def fraud_plan(payments: Bytes, terminals: int, rng: np.random.Generator) -> FraudPlan:
    """Draw who is compromised when, and which payments the fraudsters make.

    payments: (days, customers) numbers of payments.
    """
    days, customers = payments.shape
    chosen_terminals = _sample_each_day(terminals, TERMINALS_A_DAY, days, rng)
    chosen_customers = _sample_each_day(customers, CUSTOMERS_A_DAY, days, rng)
    picks = [
        _third(payments[start : start + CUSTOMER_DAYS, chosen_customers[start]], rng)
        for start in range(days)
    ]
    day = np.concatenate([pick[0] + start for start, pick in enumerate(picks)])
    customer = np.concatenate(
        [chosen_customers[start][pick[1]] for start, pick in enumerate(picks)]
    )
    rank = np.concatenate([pick[2] for pick in picks])
    order = np.argsort(day, kind="stable")
    return FraudPlan(
        terminals=chosen_terminals,
        first_of_day=np.searchsorted(day[order], np.arange(days + 1)),
        customer=customer[order],
        rank=rank[order],
    )


def _sample_each_day(population: int, size: int, days: int, rng: np.random.Generator) -> Int64s:
    wanted = min(size, population)
    return np.stack([rng.choice(population, wanted, replace=False) for _ in range(days)])


def _third(payments: Bytes, rng: np.random.Generator) -> tuple[Int64s, Int64s, Int64s]:
    """Choose a third of the payments counted in the (days, customers) table.

    Returns (day, column, rank) of each chosen one: its row and column in the table, and its number
    within that element.
    """
    upto = np.cumsum(payments.ravel(), dtype=np.int64)
    chosen = rng.choice(int(upto[-1]), int(upto[-1]) // 3, replace=False)
    element = np.searchsorted(upto, chosen, side="right")
    rank = chosen - (upto - payments.ravel())[element]
    day, column = np.divmod(element, payments.shape[1])
    return day, column, rank
