"""The Q-table in Redis: whole versions behind one pointer, and the reader that follows it."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Any, NamedTuple

from winback.models.errors import NotFittedError, StoreUnavailableError
from winback.models.states import StateSpace
from winback.operators.q_packing import blocks

if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_CONNECTION = "winback_redis"
CURRENT = "winback:current"
PREVIOUS = "winback:previous"
NO_COUPON = "none"
SAMPLED_EVERY = 100  # states, of which one is read back
UPLOAD_SECONDS = 3_600  # what a killed upload leaves behind goes after an hour


class Served(NamedTuple):
    """Names of the version served now and of the one to go back to."""

    current: str | None
    previous: str | None


class _Sent(NamedTuple):
    """How many states were sent, a checksum of all, and some of them with their values."""

    states: int
    checksum: str
    sample: dict[str, str]


def table_key(version: str) -> str:
    """Key of a version's hash: state key → JSON of coupon values."""
    return f"winback:q:{version}"


def meta_key(version: str) -> str:
    """Key of a version's description."""
    return f"winback:meta:{version}"


def redis_url(conn_id: str = DEFAULT_CONNECTION) -> str:
    """Return the URL of an Airflow Redis connection; never log it, it holds the password."""
    from urllib.parse import quote

    from winback.operators.warehouse import airflow_connection

    connection = airflow_connection(conn_id)
    scheme = "rediss" if connection.extra_dejson.get("ssl") else "redis"
    password = f":{quote(connection.password, safe='')}@" if connection.password else ""
    login = quote(connection.login or "", safe="") if connection.password else ""
    database = connection.extra_dejson.get("db", connection.schema or 0)
    place = f"{connection.host or '127.0.0.1'}:{connection.port or 6379}"
    return f"{scheme}://{login}{password}{place}/{database}"


@dataclass(frozen=True)
class QStore:
    """Writer of Q-table versions.

    Args:
        client: a ``redis.Redis`` with ``decode_responses=True``; see :func:`connect`.
        keep_seconds: how long a version lives once it is no longer current or previous.
    """

    client: Any
    keep_seconds: int

    def stage(self, as_of: str, rows: "pa.Table", meta: Mapping[str, Any]) -> str:
        """Write a version beside the one served now, verify it, and return its name.

        The name is the date and a checksum of the content: staging equal content again changes
        nothing for readers of that version, and repairs it where it was damaged.

        Args:
            as_of: date of the version.
            rows: ``state``, ``coupon_id`` and ``q_value``; best sorted by state (as bytes).
            meta: what describes the version besides.

        Raises:
            DataError: a value is not finite.
            StoreUnavailableError: Redis does not answer, or holds other rows than were sent.
        """
        upload = f"winback:upload:{token_hex(8)}"  # a name that nobody reads
        with redis_errors(self.client):
            sent = self._send(upload, rows)
            version = f"{as_of}-{sent.checksum}"
            # a version that is never served must not stay for good
            keep = None if version in self.served() else self.keep_seconds
            if sent.states:  # Redis has no empty hashes
                self._verify(upload, version, sent)
                _ = self.client.expire(upload, keep) if keep else self.client.persist(upload)
                self.client.rename(upload, table_key(version))
            described = {**meta, "as_of": as_of, "rows": sent.states, "checksum": sent.checksum}
            # not sorted: the order of the bins is the order of the parts of a state key
            self.client.set(meta_key(version), json.dumps(described), ex=keep)
        return version

    def activate(self, version: str) -> None:
        """Serve a staged version from now on; the one before becomes ``winback:previous``."""
        self._move(
            lambda now: Served(version, now.previous if now.current == version else now.current)
        )

    def served(self) -> Served:
        """What is served now, and the version before it."""
        with redis_errors(self.client):
            return Served(*self.client.mget(CURRENT, PREVIOUS))

    def restore(self, version: str, before: Served) -> None:
        """Take back the activation of ``version``, unless another one is served by now."""
        self._move(lambda now: before if now.current == version else now)

    def roll_back(self) -> str:
        """Serve the previous version again; current and previous change places.

        Raises:
            NotFittedError: there is no previous version, or it has expired.
        """
        previous = self.served().previous
        with redis_errors(self.client):
            if previous is None or not self.client.exists(meta_key(previous)):
                raise NotFittedError(
                    f"expected a previous Q-table to go back to, found {previous or 'none'}. "
                    "Publish a run for an earlier as_of instead: winback run --as-of DATE"
                )
        self._move(lambda now: Served(previous, now.current))
        return previous

    def _move(self, choose: Callable[[Served], Served]) -> None:
        """Move both pointers and the expiry dates in one step: a crash leaves all or nothing."""

        def step(pipeline: Any) -> None:
            before = Served(*pipeline.mget(CURRENT, PREVIOUS))
            after = choose(before)
            pipeline.multi()
            for pointer, version in zip((CURRENT, PREVIOUS), after, strict=True):
                _ = pipeline.set(pointer, version) if version else pipeline.delete(pointer)
            for version in filter(None, after):
                pipeline.persist(table_key(version)).persist(meta_key(version))
            for version in filter(None, {*before} - {*after}):
                pipeline.expire(table_key(version), self.keep_seconds)
                pipeline.expire(meta_key(version), self.keep_seconds)

        with redis_errors(self.client):
            self.client.transaction(step, CURRENT, PREVIOUS)

    def _send(self, upload: str, rows: "pa.Table") -> "_Sent":
        """Write all states under the name.

        No reply is waited for before the end: Redis stores states while the next ones are packed.
        """
        states, commands, digest = 0, 0, hashlib.blake2b(digest_size=8)
        sample: dict[str, str] = {}
        with self._connection() as connection:
            for block in blocks(rows):
                for command in block.commands(upload):
                    connection.send_packed_command(command)
                    connection.send_command("EXPIRE", upload, UPLOAD_SECONDS)
                    commands += 2
                digest.update(block.content)
                picked = slice(0, None, SAMPLED_EVERY)
                part = (column[picked].to_pylist() for column in (block.states, block.values))
                sample.update(zip(*part, strict=True))
                states += len(block.states)
            for _ in range(commands):
                connection.read_response()
        return _Sent(states, digest.hexdigest(), sample)

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        """One connection of the client's; after an error closed, for replies may be under way."""
        pool = self.client.connection_pool
        connection = pool.get_connection()
        try:
            yield connection
        except BaseException:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def _verify(self, upload: str, version: str, sent: "_Sent") -> None:
        """Compare the number of all states, and the values of every so many."""
        pipeline = self.client.pipeline(transaction=False)
        count, values = pipeline.hlen(upload).hmget(upload, list(sent.sample)).execute()
        if count != sent.states or values != list(sent.sample.values()):
            raise StoreUnavailableError(
                f"Redis holds {count} states of version {version}, but {sent.states} others "
                "were sent. Check its memory limit and eviction policy, then run the task again."
            )


class CouponReader:
    """Customer features in, coupon out, from the version that Redis serves now.

    The state bins travel with the version, so a reader needs no settings::

        reader = CouponReader(redis.Redis.from_url(url, decode_responses=True))
        reader.coupon({"days_since_last_purchase": 12, "purchases_last_30d": 1, ...})
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._version: str | None = None
        self._space: StateSpace | None = None

    def values(self, features: Mapping[str, Any]) -> dict[str, float]:
        """Long-run value per supported coupon in the customer's state; empty where unknown."""
        with redis_errors(self._client):
            version = self._client.get(CURRENT)
            if version is None:
                return {}
            space = self._state_space(version)
            found = space and self._client.hget(table_key(version), space.key(features))
        return json.loads(found) if found else {}

    def coupon(self, features: Mapping[str, Any]) -> str:
        """The best supported coupon; ``none`` on ties, in unknown states, or before any run."""
        values = self.values(features)
        best = max(values, key=lambda name: values[name], default=NO_COUPON)
        return best if values.get(best, 0.0) > values.get(NO_COUPON, 0.0) else NO_COUPON

    def _state_space(self, version: str) -> StateSpace | None:
        """How the version names states; None where Redis has evicted its description."""
        if self._space is None or version != self._version:
            meta = self._client.get(meta_key(version))
            if meta is None:
                return None
            space = StateSpace.from_dict(json.loads(meta)["state_space"])
            self._space, self._version = space, version
        return self._space


def connect(url: str) -> Any:
    """Open a client for :class:`QStore` and :class:`CouponReader`."""
    import redis

    return redis.Redis.from_url(
        url, decode_responses=True, socket_connect_timeout=5, socket_timeout=30
    )


def check_reachable(url: str) -> None:
    """Raise StoreUnavailableError unless Redis answers."""
    client = connect(url)
    with redis_errors(client):
        client.ping()


@contextmanager
def redis_errors(client: Any) -> Iterator[None]:
    """Turn the client's errors into winback's, without the password."""
    import redis

    try:
        yield
    except redis.RedisError as error:
        place = client.connection_pool.connection_kwargs
        raise StoreUnavailableError(
            f"Redis at {place.get('host')}:{place.get('port')} does not answer: {error}. "
            "Check that the server runs and that the connection winback_redis names it."
        ) from error
