"""The Kafka source: a topic read by a consumer group. Positions are kept in the lake; offsets are committed to the broker only for its lag
tools."""

from __future__ import annotations

import contextlib
import json
import logging
from functools import partial
from typing import Any, Final

import pyarrow as pa
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from orchestration.errors import FinegrainError
from orchestration.mapping.mapping import Stream, client_setting
from orchestration.sources.registry import SETTINGS
from orchestration.sources.streams import Chunk, PartitionOwner, Unreachable

#: librdkafka settings that cannot be changed, and why.
FIXED: Final[dict[str, tuple[str | bool, str]]] = {
    "enable.auto.commit": (False, "positions are kept in the lake"),
    "enable.auto.offset.store": (False, "positions are kept in the lake"),
    "auto.offset.reset": ("error", "lost messages must be reported, not skipped"),
    "enable.partition.eof": (True, "the end of a partition must be reported"),
    "isolation.level": ("read_committed", "messages of aborted transactions must not land"),
    # Positions of all partitions are claimed in one transaction; this strategy assigns and revokes all of them together.
    "partition.assignment.strategy": ("range", "partitions must be assigned and revoked together"),
}
#: Defaults that a mapping may override. The queue size is in KiB.
DEFAULTS: Final[dict[str, Any]] = {
    "bootstrap.servers": "localhost:9092",
    "queued.max.messages.kbytes": 16384,
    "fetch.max.bytes": 8388608,
    "fetch.wait.max.ms": 50,
    # How long fetching pauses when the queue is full. With the default of a second, the queue would run empty.
    "fetch.queue.backoff.ms": 10,
    "reconnect.backoff.max.ms": 5000,
}
_PATIENCE: Final = 10.0
_REFUSED: Final = frozenset({KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED})
_RIGHTS: Final = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED})
_GONE: Final = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})


class Kafka:
    """One member of a consumer group over one topic (a `Source`)."""

    def __init__(self, stream: Stream, group: str, where: str) -> None:
        assert stream.kafka is not None
        self.topic, self.stream_id, self.where = stream.kafka, stream.stream_id, where
        given = {
            name: client_setting(name, value, f"{where}.stream.settings.{name}")
            for name, value in stream.settings.items()
            if not name.startswith(SETTINGS)
        }
        for name, (value, why) in FIXED.items():
            if name in given:
                raise FinegrainError(
                    f"{where}.stream.settings.{name}: finegrain sets this itself to {json.dumps(value)}: {why}; leave it out"
                )
        self.settings = {"group.id": group, **DEFAULTS, **given}
        self.consumer: Consumer | None = None
        #: The next expected offset by partition; None until partitions are first assigned (possibly none).
        self._at: dict[str, int] | None = None
        self._ends: set[str] = set()
        self._trouble: KafkaError | None = None

    def open(self, owner: PartitionOwner) -> None:
        """Join the group. Partitions are assigned later, during polls."""
        self._trouble, self._at, self._ends = None, None, set()
        quiet = logging.Logger("librdkafka")
        quiet.addHandler(logging.NullHandler())
        common = {**self.settings, "error_cb": self._error}
        try:
            admin = AdminClient(
                {name: value for name, value in common.items() if not name.startswith(("group.", "fetch.", "queued."))},
                logger=quiet,
            )
            topic_id = self._topic_id(admin)
            fixed = {name: value for name, (value, _) in FIXED.items()}
            self.consumer = Consumer({**common, **fixed}, logger=quiet)
        except KafkaException as error:
            raise self._readable(error.args[0]) from None

        def assigned(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            def beginning(number: int) -> str:
                return str(consumer.get_watermark_offsets(TopicPartition(self.topic, number), _PATIENCE)[0])

            starts = {str(each.partition): partial(beginning, each.partition) for each in partitions}
            held = owner.claim(starts, topic_id)
            self._at, self._ends = {partition: int(at.position) for partition, at in held.items()}, set()
            # Start at an explicit offset even at the beginning, so that messages removed by retention meanwhile are reported.
            consumer.assign([TopicPartition(self.topic, int(partition), at) for partition, at in self._at.items()])

        def revoked(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            owner.settle()
            self._at, self._ends = None, set()

        def lost(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            owner.drop()
            self._at, self._ends = None, set()

        self.consumer.subscribe([self.topic], on_assign=assigned, on_revoke=revoked, on_lost=lost)

    def _topic_id(self, admin: AdminClient) -> str:
        """The id the broker gave the topic when it was created."""
        try:
            [answer] = admin.describe_topics(TopicCollection([self.topic]), request_timeout=_PATIENCE).values()
            while not answer.done():
                admin.poll(0.05)  # reports wrong credentials long before the request times out
                if self._trouble is not None:
                    raise self._readable(self._trouble)
            found = answer.result()
        except KafkaException as error:
            raise self._readable(self._trouble or error.args[0]) from None
        return str(found.topic_id)

    def poll(self, rows: int, seconds: float) -> Chunk:
        assert self.consumer is not None
        try:
            messages = self.consumer.consume(rows, seconds)
        except KafkaException as error:
            raise self._readable(error.args[0]) from None
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            raise self._readable(trouble)
        events = [(message, what) for message in messages if (what := message.error()) is not None]
        at = self._at or {}
        chunk = _chunk([message for message in messages if message.error() is None] if events else messages, at)
        self._ends -= chunk.ends.keys()
        for message, what in events:
            self._event(message, what, chunk)
        at.update({partition: int(end) for partition, end in chunk.ends.items()})
        return chunk

    def _event(self, message: Message, error: KafkaError, chunk: Chunk) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            # Transaction markers are not messages; they may follow the last message.
            partition, end = str(message.partition()), int(message.offset() or 0)
            chunk.starts.setdefault(partition, str((self._at or {}).get(partition, end)))
            chunk.ends[partition] = str(max(end, int(chunk.ends.get(partition, "0"))))
            self._ends.add(partition)
            return
        if error.code() in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
            return  # librdkafka retries by itself; error_cb has reported it
        raise self._readable(error, message)

    def _error(self, error: KafkaError) -> None:
        """Called by librdkafka during a poll, for errors not related to one message."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._trouble = self._trouble or error  # a broker that rejects us is soon reported as down, too
        elif error.fatal() or error.code() in _REFUSED | _RIGHTS | {KafkaError._SSL}:
            self._trouble = error

    def _readable(self, error: KafkaError, message: Message | None = None) -> Exception:
        """A readable error for an error of librdkafka: Unreachable if a retry may help, otherwise FinegrainError."""
        servers = self.settings["bootstrap.servers"]
        code = error.code()
        if code in _REFUSED:
            return FinegrainError(
                f"{self.where}.stream.settings: {servers} does not accept these credentials: {error.str()}"
            )
        if code == KafkaError._SSL:
            return FinegrainError(
                f"{self.where}.stream.settings: the TLS certificate of {servers} is not trusted (check security.protocol, ssl.ca.location): "
                f"{error.str()}"
            )
        if code in _RIGHTS:
            return FinegrainError(
                f"{self.where}.stream: this user may not read {self.topic} (group {self.settings['group.id']}) on {servers}: {error.str()}"
            )
        if code in _GONE:
            return FinegrainError(
                f"{self.where}.stream.kafka: {servers} has no topic '{self.topic}'; create it, or correct the name"
            )
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            which = f"{self.topic}/{message.partition()}" if message is not None else self.topic
            return FinegrainError(
                f"{which}: the position in the lake is no longer in the topic ({error.str()}): messages were removed before "
                "they were read, or the topic was emptied. To continue with the messages that are left, run this once with --from-beginning"
            )
        if code == KafkaError._INVALID_ARG:
            return FinegrainError(f"{self.where}.stream.settings: {error.str()}")
        return Unreachable(f"kafka at {servers} does not answer ({error.str()})")

    def landed(self, ends: dict[str, str]) -> None:
        """Commit offsets to the broker for its lag tools. They are never read back, so a failure is ignored."""
        if self.consumer is None:
            return
        offsets = [
            TopicPartition(self.topic, int(partition), int(end))
            for partition, end in ends.items()
            if partition in (self._at or {})
        ]
        with contextlib.suppress(KafkaException):
            if offsets:
                self.consumer.commit(offsets=offsets, asynchronous=True)

    def lag(self) -> dict[str, int]:
        if self.consumer is None or not self._at:
            return {}
        found = {}
        for at in self.consumer.position(
            [TopicPartition(self.topic, int(partition)) for partition in sorted(self._at)]
        ):
            _, high = self.consumer.get_watermark_offsets(at, cached=True)
            if at.offset >= 0 and high >= 0:
                found[str(at.partition)] = max(high - at.offset, 0)
        return found

    def is_drained(self) -> bool:
        """A member without partitions, because the group has more members than partitions, has nothing to wait for."""
        return self._at is not None and self._at.keys() <= self._ends

    def close(self) -> None:
        if self.consumer is not None:
            consumer, self.consumer = self.consumer, None
            with contextlib.suppress(KafkaException):
                consumer.close()


def _chunk(messages: list[Message], at: dict[str, int]) -> Chunk:
    """A chunk of messages from partitions that were read up to `at`. Offsets of a partition only grow, with gaps from compaction and transaction
    markers; a message before `at` would land twice."""
    partitions = list(map(Message.partition, messages))
    offsets = list(map(Message.offset, messages))
    payloads = list(map(Message.value, messages))
    headers = list(map(Message.headers, messages))
    firsts = {
        str(partition): int(offset or 0)
        for partition, offset in zip(reversed(partitions), reversed(offsets), strict=True)
    }
    return Chunk.of(
        [
            pa.array(partitions, pa.int32()),
            pa.array(offsets, pa.int64()),
            payloads,
            [at for _, at in map(Message.timestamp, messages)],
            list(map(Message.key, messages)),
            [None if header is None else _header(header) for header in headers]
            if any(headers)
            else pa.nulls(len(headers)),
        ],
        {partition: str(min(first, at.get(partition, first))) for partition, first in firsts.items()},
        {
            str(partition): str((offset or 0) + 1)
            for partition, offset in dict(zip(partitions, offsets, strict=True)).items()
        },
        sum(map(len, filter(None, payloads))),
    )


def _header(headers: Any) -> str:
    """Headers as JSON: a list of pairs, bytes as text, with invalid UTF-8 escaped."""
    return json.dumps(
        [[name, None if value is None else value.decode("utf-8", "backslashreplace")] for name, value in headers]
    )
