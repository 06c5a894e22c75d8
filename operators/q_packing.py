"""The Q-table's rows as Redis takes them: one command for a thousand states, made by columns."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from winback.models.errors import DataError, first_rows

if TYPE_CHECKING:
    import pyarrow as pa

STATE, COUPON_ID, Q_VALUE = "state", "coupon_id", "q_value"
BLOCK_STATES = 20_000  # packed at once: Redis stores them while the next are packed
COMMAND_STATES = 1_000  # states per command: readers in between wait for a millisecond or two


@dataclass(frozen=True)
class Block:
    """States of a version, in order, and what Redis is told of them.

    ``values`` are JSON objects; ``texts`` are states and values in Redis' protocol.
    """

    states: "pa.Array"
    values: "pa.Array"
    texts: "pa.Array"

    def commands(self, key: str) -> Iterator[Sequence[Any]]:
        """HSETs of the states under the key, in parts that need no joining."""
        name = key.encode()
        for start in range(0, len(self.texts), COMMAND_STATES):
            texts = self.texts[start : start + COMMAND_STATES]
            head = b"*%d\r\n$4\r\nHSET\r\n$%d\r\n%b\r\n" % (2 + 2 * len(texts), len(name), name)
            yield head, _content(texts)

    @cached_property
    def content(self) -> memoryview:
        """All of it in one piece: equal content, equal bytes."""
        return _content(self.texts)


def blocks(rows: "pa.Table") -> Iterator[Block]:
    """Pack the states, block by block, in the order of their UTF-8 bytes.

    Args:
        rows: ``state``, ``coupon_id`` and ``q_value``; a state's coupons keep their order. Rows
            that come sorted by state cost least.

    Raises:
        DataError: a value is not finite; JSON has no such number.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table = rows.select([STATE, COUPON_ID, Q_VALUE]).combine_chunks()
    if not len(table):
        return
    state = table[STATE].combine_chunks()
    if not pc.all(pc.less_equal(state[:-1], state[1:])).as_py():
        order = pc.sort_indices(state)  # stable
        table, state = table.take(order), state.take(order)
    _check_finite(table)
    first = np.append(0, np.flatnonzero(np.diff(state.dictionary_encode().indices)) + 1)
    ends = np.append(first[BLOCK_STATES::BLOCK_STATES], len(table))
    names = table[COUPON_ID].combine_chunks().dictionary_encode()
    labels = pa.array(
        [f"{json.dumps(n, ensure_ascii=False)}:" for n in names.dictionary.to_pylist()]
    )
    numbers = table[Q_VALUE].combine_chunks()
    begin = 0
    for end in ends.tolist():
        part = slice(begin, end)
        starts = first[(first >= begin) & (first < end)]
        label = labels.take(names.indices[part])
        pairs = pc.binary_join_element_wise(label, pc.cast(numbers[part], pa.string()), "")
        offsets = pa.array(np.append(starts, end) - begin, pa.int32())
        yield _block(state.take(pa.array(starts)), pa.ListArray.from_arrays(offsets, pairs))
        begin = end


def _block(states: "pa.Array", pairs: "pa.ListArray") -> Block:
    import pyarrow as pa
    import pyarrow.compute as pc

    values = pc.binary_join_element_wise("{", pc.binary_join(pairs, ","), "}", "")
    sizes = (pc.cast(pc.binary_length(part), pa.string()) for part in (states, values))
    of_state, of_values = sizes
    texts = pc.binary_join_element_wise(
        *("$", of_state, "\r\n", states, "\r\n$", of_values, "\r\n", values, "\r\n", "")
    )
    return Block(states, values, texts)


def _content(texts: "pa.Array") -> memoryview:
    """The texts joined: how Arrow keeps them already."""
    _, offsets, characters = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(characters)[ends[0] : ends[-1]]


def _check_finite(table: "pa.Table") -> None:
    values = table[Q_VALUE].to_numpy()
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        states = [table[STATE][int(row)].as_py() for row in wrong[:5]]
        raise DataError(
            f"expected finite Q-values; others came for states {first_rows(states, len(wrong))}. "
            "Run plan again."
        )
