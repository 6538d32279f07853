"""The Amazon Kinesis source: one loader reads all shards of a stream, also while shards are split and merged."""

from __future__ import annotations

import time
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError, PartialCredentialsError

from orchestration.config.settings import Environment, is_server
from orchestration.errors import FinegrainError
from orchestration.mapping.mapping import Stream, client_setting
from orchestration.sources.streams import Chunk, PartitionOwner, Unreachable

#: Kinesis returns at most this many records per call, and allows five calls per second and shard.
MOST: Final = 10_000
PAUSE: Final = 0.2
#: Seconds between checks for new shards.
LOOK: Final = 5.0
#: The position of a shard that was never read, and of a closed shard that was read to its end.
BEGINNING, END = "beginning", "end"

_WAIT: Final = frozenset(
    {
        "ProvisionedThroughputExceededException",
        "LimitExceededException",
        "ThrottlingException",
        "KMSThrottlingException",
    }
)
_RIGHTS: Final = frozenset(
    {
        "AccessDeniedException",
        "UnrecognizedClientException",
        "InvalidSignatureException",
        "IncompleteSignature",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "SignatureDoesNotMatch",
    }
)


class Kinesis:
    """All shards of one stream (a `Source`). A position is the sequence number of the last record read. There are no consumer groups: a second
    loader takes over the stream from the first."""

    def __init__(self, stream: Stream, where: str) -> None:
        assert stream.kinesis is not None
        self.stream, self.stream_id, self.where = stream.kinesis, stream.stream_id, where
        self.settings = {
            name: client_setting(name, value, f"{where}.stream.settings.{name}")
            for name, value in stream.settings.items()
        }
        if not is_server(str(self.settings.get("endpoint_url", "https://aws"))):
            raise FinegrainError(
                f"{where}.stream.settings.endpoint_url: this is not a server address; write it like https://host:port"
            )
        self._client: Any = None
        self._owner: PartitionOwner | None = None
        self._topic_id: str | None = None
        self._at: dict[str, str] = {}
        self._iterators: dict[str, str] = {}
        self._behind: dict[str, int] = {}
        self._asked: dict[str, float] = {}
        self._looked = 0.0
        self._turn = 0

    def open(self, owner: PartitionOwner) -> None:
        self._owner = owner
        self._at, self._iterators, self._behind, self._asked = {}, {}, {}, {}
        try:
            # A new session: boto3's default session keeps the first credentials it finds, even if the environment changes.
            self._client = boto3.Session().client(
                "kinesis",
                config=Config(connect_timeout=5, read_timeout=15, retries={"total_max_attempts": 2}),
                # boto3 reads only AWS_DEFAULT_REGION; other AWS tools read AWS_REGION first.
                **{"region_name": Environment.read().aws_region, **self.settings},
            )
        except NoRegionError:
            raise FinegrainError(f"{self.where}.stream.settings: no region; set region_name, or AWS_REGION") from None
        except (TypeError, ValueError) as error:
            raise FinegrainError(f"{self.where}.stream.settings: {error}") from None
        about = self._ask("describe_stream_summary", StreamName=self.stream)["StreamDescriptionSummary"]
        self._topic_id = f"{about['StreamARN']} {about['StreamCreationTimestamp'].timestamp():.0f}"
        self._look()

    def _ask(self, call: str, **given: Any) -> Any:
        """One API call, with readable errors."""
        try:
            return getattr(self._client, call)(**given)
        except ClientError as error:
            code, said = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
            # For an iterator it may be an expired shard; a new session will see which shards exist.
            if code == "ResourceNotFoundException" and call != "get_shard_iterator":
                raise FinegrainError(
                    f"{self.where}.stream.kinesis: there is no stream '{self.stream}' ({self._client.meta.endpoint_url}); create it, or correct the name"
                ) from None
            if code in _RIGHTS:
                raise FinegrainError(
                    f"{self.where}.stream: Kinesis does not accept these credentials: {said or code}"
                ) from None
            if code in ("ExpiredIteratorException", "TrimmedDataAccessException"):
                raise _Expired from None
            if code == "InvalidArgumentException" and call == "get_shard_iterator":
                raise FinegrainError(
                    f"{self.stream_id}: the position in the lake is no longer in the stream ({said}); records were removed before they were "
                    "read. To continue with the records that are left, run this once with --from-beginning"
                ) from None
            raise Unreachable(f"kinesis answers {code}: {said}") from None
        except (NoCredentialsError, PartialCredentialsError):
            raise FinegrainError(
                f"{self.where}.stream: no credentials for Kinesis; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        except BotoCoreError as error:
            raise Unreachable(f"kinesis at {self._client.meta.endpoint_url} does not answer ({error})") from None

    def _look(self) -> None:
        """List the shards, and claim new ones."""
        assert self._owner is not None
        self._looked = time.monotonic()
        shards: list[str] = []
        token: str | None = None
        while True:
            given: dict[str, str] = {"NextToken": token} if token else {"StreamName": self.stream}
            answer = self._ask("list_shards", **given)
            shards += [shard["ShardId"] for shard in answer["Shards"]]
            token = answer.get("NextToken")
            if not token:
                break
        if set(shards) - self._at.keys():
            held = self._owner.claim({shard: lambda: BEGINNING for shard in shards}, self._topic_id)
            self._at = {shard: at.position for shard, at in held.items()}
            self._iterators, self._behind = {}, {}
            for shard, at in self._at.items():
                if at != END:
                    self._iterators[shard] = self._iterator(shard, at)

    def _iterator(self, shard: str, at: str) -> str:
        given = {"ShardIteratorType": "TRIM_HORIZON"}
        if at != BEGINNING:
            given = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": at}
        return str(self._ask("get_shard_iterator", StreamName=self.stream, ShardId=shard, **given)["ShardIterator"])

    def poll(self, rows: int, seconds: float) -> Chunk:
        if time.monotonic() - self._looked > LOOK:
            self._look()
        deadline = time.monotonic() + seconds
        while True:
            for shard in self._in_turn():
                chunk = self._read(shard, rows)
                if chunk.ends:
                    return chunk
            left = deadline - time.monotonic()
            if left <= 0:
                return Chunk()
            time.sleep(min(left, 0.02))

    def _in_turn(self) -> list[str]:
        """Shards that may be read now, in rotating order."""
        shards = sorted(self._iterators)
        self._turn += 1
        start = self._turn % max(len(shards), 1)
        now = time.monotonic()
        return [shard for shard in shards[start:] + shards[:start] if now - self._asked.get(shard, 0) >= PAUSE]

    def _read(self, shard: str, rows: int) -> Chunk:
        self._asked[shard] = time.monotonic()
        most = min(rows, MOST)
        try:
            answer = self._ask("get_records", ShardIterator=self._iterators[shard], Limit=most)
        except _Expired:
            self._iterators[shard] = self._iterator(shard, self._at[shard])
            return Chunk()
        except Unreachable as trouble:
            if any(code in str(trouble) for code in _WAIT):
                return Chunk()
            raise
        records, start = answer["Records"], self._at[shard]
        # A full response may have been cut off within a millisecond, and then reports no lag.
        self._behind[shard] = max(int(answer.get("MillisBehindLatest", 0)), int(len(records) == most))
        if records:
            self._at[shard] = records[-1]["SequenceNumber"]
        if answer.get("NextShardIterator"):
            self._iterators[shard] = answer["NextShardIterator"]
        else:  # the shard is closed and was read to its end
            del self._iterators[shard]
            self._behind.pop(shard, None)
            self._at[shard] = END
            self._looked = 0.0
        moved = bool(records) or self._at[shard] == END
        count = len(records)
        return Chunk.of(
            [
                [shard] * count,
                [record["SequenceNumber"] for record in records],
                [record["Data"] for record in records],
                [int(record["ApproximateArrivalTimestamp"].timestamp() * 1000) for record in records],
                [record["PartitionKey"].encode() for record in records],
                [None] * count,
            ],
            {shard: start},
            {shard: self._at[shard]} if moved else {},
            sum(len(record["Data"]) for record in records),
        )

    def landed(self, ends: dict[str, str]) -> None:
        pass

    def lag(self) -> dict[str, int]:
        return dict(self._behind)

    def is_drained(self) -> bool:
        """Every shard has reported no lag, and no shard is unread."""
        return self._looked > 0 and all(self._behind.get(shard, 1) == 0 for shard in self._iterators)

    def close(self) -> None:
        self._client, self._iterators = None, {}


class _Expired(Exception):
    """A shard iterator has expired, which happens after five minutes."""
