"""moto's server, with shards that split and merge as AWS documents it.

moto (5.2.5) keeps sending records to a shard that was split or merged, returns the records of merged shards twice, and never
reports that a closed shard was read to its end. Here a closed shard keeps its records and gets no new ones, its reader reaches the
end, and new records go to its children. Everything else is moto's.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

from moto.kinesis.models import KinesisBackend, Record, Stream
from moto.kinesis.utils import decompose_shard_iterator
from moto.server import main

# moto answers in threads; no record may enter a shard that is being closed.
ONE = threading.RLock()
_put_record, _split, _merge = Stream.put_record, Stream.split_shard, Stream.merge_shards
_get_records = KinesisBackend.get_records
_other_readers = (KinesisBackend.list_shards, KinesisBackend.get_shard_iterator, KinesisBackend.describe_stream_summary)


def _reshard(stream: Stream, work: Callable[..., None], *shards: str) -> None:
    """Split or merge shards; meanwhile, the parents' records are hidden from moto."""
    with ONE:
        kept = {name: stream.shards[name].records for name in shards}
        for name in shards:
            stream.shards[name].records = {}
        try:
            work(stream, *shards)
        finally:
            for name, records in kept.items():
                stream.shards[name].records = records


def put_record(self: Stream, *given: Any) -> Any:
    with ONE:
        every, self.shards = self.shards, {name: shard for name, shard in self.shards.items() if shard.is_open}
        try:
            return _put_record(self, *given)
        finally:
            self.shards = every


def split_shard(self: Stream, shard_to_split: str, new_starting_hash_key: str) -> None:
    _reshard(self, lambda stream, name: _split(stream, name, new_starting_hash_key), shard_to_split)


def merge_shards(self: Stream, shard_to_merge: str, adjacent_shard_to_merge: str) -> None:
    _reshard(self, _merge, shard_to_merge, adjacent_shard_to_merge)


def get_records(
    self: KinesisBackend, stream_arn: str | None, shard_iterator: str, limit: int | None
) -> tuple[str | None, list[Record], int]:
    with ONE:
        following, records, behind = _get_records(self, stream_arn, shard_iterator, limit)
        name, number, last = decompose_shard_iterator(following)
        shard = self.streams[name].shards[number]
        ended = not shard.is_open and int(last) >= shard.get_max_sequence_number()
        return None if ended else following, records, behind


def while_no_shard_moves(read: Callable[..., Any]) -> Callable[..., Any]:
    """A call that reads shards, but not while some records are hidden."""

    @functools.wraps(read)
    def reads(*given: Any, **more: Any) -> Any:
        with ONE:
            return read(*given, **more)

    return reads


if __name__ == "__main__":
    Stream.put_record = put_record  # type: ignore[method-assign]
    Stream.split_shard = split_shard  # type: ignore[method-assign]
    Stream.merge_shards = merge_shards  # type: ignore[method-assign]
    KinesisBackend.get_records = get_records  # type: ignore[assignment]
    for reader in _other_readers:
        setattr(KinesisBackend, reader.__name__, while_no_shard_moves(reader))
    main(sys.argv[1:])
