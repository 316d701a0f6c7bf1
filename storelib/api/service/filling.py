# SPDX-License-Identifier: Apache-2.0
"""The data of an import into its stores: one read for all of them, or none where a store can keep the staged file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from storelib.api.messages import told
from storelib.api.service.core import Core
from storelib.api.service.data import Data
from storelib.api.service.deletion import is_unanswered
from storelib.api.service.foreign import known_digest
from storelib.api.service.import_jobs import Job
from storelib.api.service.material import Material
from storelib.api.service.tasks import Tasks
from storelib.driver import Store, StoredImage
from storelib.drivers.filesystem import FilesystemStore
from storelib.exceptions import StoreError
from storelib.transfer import GivenFile, fan_out
from storelib.transfer.contract import Digests
from storelib.transfer.download import ImageStream
from storelib.transfer.source import Data as Bytes
from storelib.transfer.verifying import comparing

Result = StoredImage | StoreError
Source = Bytes | GivenFile


class Filled(NamedTuple):
    """What was stored, which stores failed, and why."""

    good: list[StoredImage]
    failed: list[str]
    message: str


class Filling:
    """Fills the stores of jobs; raises StoreError, and leaves nothing, when what became of it is not good enough."""

    def __init__(self, core: Core, data: Data, tasks: Tasks) -> None:
        self._core = core
        self._data = data
        self._tasks = tasks

    def fill(
        self,
        job: Job,
        source: Source,
        size: int | None,
        digests: Digests | None = None,
        check: Callable[[Digests], object] | None = None,
    ) -> Filled:
        """From a stream, with one read and one hash pass, or none if the ``digests`` are known."""
        return self._filled(job, _by_name(job.stores, self._fan_out(job, job.stores, source, size, digests, check)))

    def copy(self, job: Job, source: Source, stream: ImageStream) -> Filled:
        """From a store that has it, which ``source`` reads by ``stream``, compared with the digest that is recorded.

        What is not the same, because a disk or a wire has changed it, is published nowhere: DigestMismatch.
        """
        known, size = known_digest(job.image), stream.size
        if known is None:
            return self.fill(job, source, size)
        if stream.verified_with is not None:
            return self.fill(job, source, size, Digests(job.image.checksum, known.value, known.algorithm))
        check = comparing(known, f"the data of image {job.image.id}")
        results = self._fan_out(job, job.stores, source, size, None, check, known.algorithm)
        return self._filled(job, _by_name(job.stores, results))

    def take(self, job: Job, material: Material, *, shared: bool) -> Filled:
        """From staged data, of which the digests are known.

        File stores on its file system share its blocks where that has such copies (``shared``); where it has not, the
        last of them keeps the file itself. The others are filled by one read, before, so that whatever fails, what is
        staged is as it was.
        """
        files: list[Store[Any]] = [store for store in job.stores if isinstance(store, FilesystemStore)]
        takers = files if shared else files[-1:]
        others = [store for store in job.stores if store not in takers]
        results: dict[str, Result] = {}
        try:
            batches: list[list[Store[Any]]] = [others, *([store] for store in takers)]
            for stores in batches:
                if stores and not (job.all_must_succeed and _errors(results)):
                    results |= self._take(job, stores, material)
        except BaseException:
            self._data.discard(job.context, job.ticket, _good(results))
            raise
        return self._filled(job, {store.name: results[store.name] for store in job.stores if store.name in results})

    def _take(self, job: Job, stores: Sequence[Store[Any]], material: Material) -> dict[str, Result]:
        source = GivenFile(material.path or "")
        try:
            results = self._fan_out(job, stores, source, material.size, material.known)
        except StoreError as error:
            # What was staged could not be read to its end for these; another one may be good enough.
            results = [error] * len(stores)
        return _by_name(stores, results)

    def _fan_out(
        self,
        job: Job,
        stores: Sequence[Store[Any]],
        source: Source,
        size: int | None,
        digests: Digests | None = None,
        check: Callable[[Digests], object] | None = None,
        algorithm: str | None = None,
    ) -> Sequence[Result]:
        checks = [] if check is None else [check]
        if job.signature is not None:
            checks.append(job.signature.check)
        with self._data.watching(job.ticket) as progress:
            return fan_out(
                stores,
                job.image.id,
                source,
                size,
                hashing_algo=algorithm or self._core.hashing_algorithm,
                digests=digests,
                context=job.context,
                verifier=job.signature,
                progress=self._tasks.telling(job.task_id, progress),
                check=(lambda digests: [each(digests) for each in checks]) if checks else None,
            )

    def _filled(self, job: Job, results: Mapping[str, Result]) -> Filled:
        good, errors = _good(results), _errors(results)
        self._data.may_have(job.ticket, [name for name, error in errors.items() if is_unanswered(error)])
        why = {name: told(error) for name, error in errors.items()}
        why |= dict.fromkeys(job.left_out, "it still has to delete what it had of the image; try again later")
        message = "; ".join(f"store {name}: {said}" for name, said in why.items())
        if errors and (job.all_must_succeed or not good):
            self._data.discard(job.context, job.ticket, good)
            raise next(iter(errors.values()))
        return Filled(good, list(why), message)


def _by_name(stores: Sequence[Store[Any]], results: Sequence[Result]) -> dict[str, Result]:
    return {store.name: result for store, result in zip(stores, results, strict=True)}


def _good(results: Mapping[str, Result]) -> list[StoredImage]:
    return [result for result in results.values() if isinstance(result, StoredImage)]


def _errors(results: Mapping[str, Result]) -> dict[str, StoreError]:
    return {name: result for name, result in results.items() if isinstance(result, StoreError)}
