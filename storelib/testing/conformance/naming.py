# SPDX-License-Identifier: Apache-2.0
"""Ids, URIs and secrets: what an image may be called, whose URI it is, and what no URI may show."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from oslo_config import cfg

from storelib.capabilities import Capability
from storelib.driver import Area, Digests
from storelib.exceptions import BadStoreConfiguration, BadStoreUri, Invalid, NotFound, StoreError
from storelib.testing.conformance.bench import Bench, assert_same_bytes, not_applicable, payload
from storelib.testing.conformance.promises import Promises, assert_no_secret, logged, needs, sampled, without_key_name
from storelib.uris import redact

#: What may come after the prefix in an id, by what is hostile about it.
HOSTILE_IDS = {
    "percent": "100%",
    "encoded slash": "a%2Fb",
    "encoded climb": "..%2f..%2fetc%2Fpasswd",
    "encoded NUL": "a%00b",
    "query": "a?versionId=1&x=y",
    "fragment": "a#b",
    "plus": "a+b c",
    "credentials": "user:pass@host",
    "quotes": 'it\'s "quoted"',
    "backslash": "..\\..\\a",
    "shell": "$(id);`id`|<>*!{}[]~^",
    "semicolon": "a;b=c,d&e",
    "non-ASCII": "Bücher-日本語-\u05d0",
    "emoji": "\U0001f4bf\U0001f469\u200d\U0001f680",
    "combining": "e\u0301 is not \u00e9",
    "composed": "\u00e9 is not e\u0301",
    "case": "ImAgE",
    "ligature and exponent": "\ufb01 is not fi, \u00b2 is not 2",
    "invisible": "zero\u200bwidth\u2060joiner",
    "line separator": "a\u2028b\u2029c",
}
#: The same at the end of it.
ENDINGS = {
    "spaces": " two  spaces ",
    "dots": "a..b...",
    "ending .part": "a.part",
    "ending .tmp": "a.tmp",
    "ending .lock": "a.lock",
    "ending in a tilde": "a~",
}
#: Several of the first at once.
TOGETHER = {
    f"all from {first} to {last}": "-".join([*HOSTILE_IDS.values()][first:last]) for first, last in ((0, 10), (10, 20))
}
#: The same before the prefix, where nobody else's images are.
HOSTILE_STARTS = {"leading dot": ".", "leading dots": "..", "leading dash": "-", "leading tilde": "~", "space": " "}
#: What is no id at all, and what makes none of one that is allowed.
REFUSED_IDS = {"empty": "", "dot": ".", "dot dot": "..", "None": None, "bytes": b"abc", "256 bytes": "a" * 256}
REFUSED_FORMS = {
    "slash": "a/{}",
    "climb": "../{}",
    "absolute": "/{}",
    "trailing slash": "{}/",
    "NUL": "{}\0",
    "newline": "{}\n",
    "escape": "{}\x1b[2J",
    "C1 control": "{}\x85",
    "lone surrogate": "{}\udcff",
}


@needs(Capability.READ)
class Naming(Promises):
    """Promises about URIs, of stores that cannot add as well."""

    def foreign_uris(self, bench: Bench, uri: str) -> list[str]:
        """URIs of the same form that lie in other places than this store. Override where the form hides the place.

        By default the first part of the URI, a host, bucket or directory, gets one more letter, and one fewer, and its
        port another number.
        """
        scheme, _, rest = uri.partition("://")
        parts = rest.split("/")
        place = next((at for at, part in enumerate(parts[:-1]) if part), None)
        if place is None:
            return []
        place_name = parts[place]
        longer, shorter = (re.sub(r"(.)(:\d+)?$", form, place_name, count=1) for form in (r"\1x\2", r"\2"))
        others = [longer] if len(shorter.partition(":")[0]) < 2 else [longer, shorter]
        # A server at another port is another one.
        others += [re.sub(r":\d+$", port, place_name) for port in (":1", ":65535") if re.search(r":\d+$", place_name)]
        return [f"{scheme}://{'/'.join([*parts[:place], other, *parts[place + 1 :]])}" for other in others]

    def test_foreign_uri_is_refused(self, bench: Bench) -> None:
        """A URI of another store is BadStoreUri, whatever is asked of it."""
        uri, data = bench.image(1)
        foreign = self.foreign_uris(bench, uri)
        if not foreign:
            not_applicable("URIs of this store name no place")
        for other in foreign:
            for call in _calls(bench).values():
                with self.refuses(bench, BadStoreUri):
                    call(other)
        assert_same_bytes(bench.read(uri), data)

    def test_neighbour_of_the_place_is_not_the_place(self, bench: Bench) -> None:
        """A URI that only begins like one of this store, or climbs out of it, reads and deletes nothing."""
        uri, data = bench.image(1)
        base, _, name = uri.rpartition("/")
        ours = [f"{base}x/{name}", f"{base}/../{name}", f"{base}/x/../../{name}", f"{base}/%2e%2e/{name}"]
        ours += [f"{base}/..%2f{name}", f"{base}/%2F{name}", f"{base}/{name}%00"]
        for other in ours:
            for name, call in _calls(bench).items():
                if name not in ("presign", "set_acls"):  # those need not look whether the image is there
                    with self.refuses(bench, BadStoreUri, NotFound):
                        call(other)
        for other in (f"{base}/..", f"{base}/%2e%2e", f"{base}/.", f"{base}/..%2f..%2f..%2fetc%2fpasswd"):
            # Never deleted: a driver that is wrong here would do it.
            with self.refuses(bench, BadStoreUri, NotFound):
                bench.read(other)
            with self.refuses(bench, BadStoreUri, NotFound):
                bench.store.get_size(other)
        assert_same_bytes(bench.read(uri), data)

    @pytest.mark.parametrize("uri", ["", "no uri", "nosuchscheme://place/image", 7, None, b"bytes://a/b"])
    def test_malformed_uri_is_refused(self, bench: Bench, uri: Any) -> None:
        """What is no URI, or has a scheme that this store does not serve, is BadStoreUri."""
        for call in _calls(bench).values():
            with self.refuses(bench, BadStoreUri):
                call(uri)

    def test_uri_of_bare_scheme_is_refused(self, bench: Bench) -> None:
        """A scheme alone, or with percent signs that encode no UTF-8, is BadStoreUri."""
        for scheme in bench.store.schemes:
            for uri in (f"{scheme}:", f"{scheme}:/", f"{scheme}://"):
                with self.refuses(bench, BadStoreUri):
                    bench.store.get(uri)
        uri, _ = bench.image(1)
        with self.refuses(bench, BadStoreUri, NotFound):
            bench.read(f"{uri.rpartition('/')[0]}/%ff%fe")

    def test_roots_lead_to_the_store(self, bench: Bench) -> None:
        """A registry, which finds the store of a URI by what ``roots`` and ``possible_roots`` tell, finds this one."""
        roots = bench.store.roots()
        if roots is None:
            return
        assert not isinstance(roots, str), f"roots are several: [{roots!r}], not {roots!r}"
        uri, _ = bench.image(1)
        location = bench.store.locate(uri)
        possible = type(bench.store).possible_roots(location)
        assert not isinstance(possible, str), f"possible_roots are several: [{possible!r}], not {possible!r}"
        meet = possible is None or set(possible) & set(roots)
        assert meet, f"{location} leads to {possible}, and the store is at {roots}"

    def test_areas_can_be_compared(self, bench: Bench) -> None:
        """``areas``, which a registry compares with those of other stores, are what it takes, and always the same."""
        areas = list(bench.store.areas())
        for area in areas:
            assert isinstance(area, Area), f"areas gives {area!r}, which is no storelib.driver.Area"
            assert isinstance(area.container, tuple), f"the container of an area is a tuple, not {area.container!r}"
            assert isinstance(area.prefix, str), f"the prefix of an area is a str, not {area.prefix!r}"
            known = isinstance(area.option, str) and hasattr(bench.store.conf, area.option)
            assert known, f"the option of an area is one of the store's own, by name, not {area.option!r}"
        again = list(bench.reopened().areas())
        assert again == areas, f"another object of the store has the areas {again}, this one {areas}"

    def test_option_that_cannot_be_is_refused(self, bench: Bench) -> None:
        """A store with any text for an option is configured, or is BadStoreConfiguration, which shows no secret.

        Another error would end all stores of a configuration, and name neither store nor option.
        """
        store = bench.store
        for option in store.options:
            if type(option) is not cfg.StrOpt:
                continue
            for value in ("", "http://[", "a b/%zz:x"):
                other = type(store)(store.name, _OneOther(store.conf, option.dest, value))
                try:
                    other.configure()
                except BadStoreConfiguration as error:
                    assert_no_secret(bench.secrets, f"{error} {error!r}", f"what is said of {option.name}")
                except Exception as error:
                    what = f"{type(error).__name__} and not BadStoreConfiguration"
                    raise AssertionError(f"{option.name} = {value!r}: configuring the store raises {what}") from error

    def test_details_are_texts(self, bench: Bench) -> None:
        """``details``, which the image API shows, have a text for each name, and no secret."""
        details = bench.store.details()
        assert isinstance(details, Mapping), f"details are a mapping, not {details!r}"
        texts = all(isinstance(each, str) for pair in details.items() for each in pair)
        assert texts, "names and values of details are texts"
        assert_no_secret(bench.secrets, f"{details}", "what details tells")

    def test_uri_comes_back_from_its_location(self, bench: Bench) -> None:
        """Parsing a URI and formatting it again gives the same URI, and an equal location."""
        uri, _ = bench.image(1)
        location = bench.location(uri)
        assert location.uri == uri
        again = bench.location(location.uri)
        assert again == location
        assert hash(again) == hash(location)
        assert bench.store.uri_of(uri) == uri, "what an add wrote is spelled as the store does"

    # To who only reads, URLs of others, any two addresses are two.
    @needs(Capability.DELETE)
    def test_image_has_one_uri(self, bench: Bench) -> None:
        """Another spelling that leads to the image is refused, or known for the same, by ``canonical``."""
        uri, data = bench.image(1)
        for other in _spellings(uri):
            try:
                found = bench.read(other)
            except (BadStoreUri, NotFound):
                continue
            assert_same_bytes(found, data)
            assert bench.store.uri_of(other) == uri, (
                f"{other} reads the image at {uri} and is taken for another; parse refuses it, or canonical says so"
            )

    def test_store_shows_no_credential(self, bench: Bench) -> None:
        """No secret option is in the store's repr, nor in a URI or what is printed of it."""
        uri, _ = bench.image(1)
        location = bench.location(uri)
        shown = [repr(bench.store), str(bench.store), uri, location.uri, repr(location), str(location)]
        shown += [repr(location.store_location), str(location.store_location)]
        assert_no_secret(bench.secrets, "\n".join(shown), "the store's repr or URI")
        assert redact(uri) == uri, "a URI that storelib writes needs no redaction"

    def test_credential_of_an_old_uri_is_not_shown(self, bench: Bench) -> None:
        """Credentials in a URI, as old ones have them, are in no error and in no log."""
        uri, _ = bench.image(1)
        scheme, _, rest = uri.partition("://")
        secret = hashlib.sha256(uri.encode()).hexdigest()
        old = f"{scheme}://somebody:{secret}@{rest}"
        if secret in redact(old):
            not_applicable(f"{scheme} URIs have no place for credentials")
        with logged("storelib") as lines:
            try:
                bench.read(old)
            except StoreError as error:
                lines += [str(error), repr(error)]
            else:
                location = bench.location(old)
                lines += [repr(location), str(location), location.uri]
        assert_no_secret([secret], "\n".join(lines), "an exception, a log line or a new URI")


@needs(Capability.ADD | Capability.READ)
class NamingWhenAdding(Promises):
    """Promises about ids, and about what callers see of an image."""

    def test_results_show_no_credential(self, bench: Bench) -> None:
        """No secret option is in anything that the store returns: a result, a stat, a list, its health, a leftover."""
        image_id = bench.new_id("shown")
        stored = bench.add(image_id, payload(bench.part + 1))
        shown: list[object] = [stored, stored.metadata]
        copied = bench.copy(stored.uri, bench.new_id("shown"))
        shown += [copied, copied.metadata]
        if bench.can(Capability.STAT):
            shown.append(bench.store.stat(stored.uri))
        if bench.can(Capability.LIST):
            bench.eventually(lambda: bench.store.find_image(image_id), lambda: f"{image_id!r} is not found")
            shown.append(bench.store.find_image(image_id))
            shown += [] if bench.shared else list(bench.store.list_images())
        if bench.can(Capability.CHECK):
            shown.append(bench.store.check())
        if bench.can(Capability.PRESIGN):
            shown.append(without_key_name(bench.store.presign(stored.uri, 60)))
        with bench.store.get(stored.uri).data as stream:
            shown += [stream, getattr(stream, "name", None)]
        assert_no_secret(bench.secrets, "\n".join(f"{each} {each!r}" for each in shown), "what the store returns")

    @pytest.mark.parametrize("hostile", [*HOSTILE_IDS, *ENDINGS, *TOGETHER])
    @sampled(lambda hostile: hostile not in HOSTILE_IDS)
    def test_hostile_id_round_trips(self, bench: Bench, hostile: str) -> None:
        """Any id that is allowed works, and comes back from its URI to the same image."""
        _round_trip(self, bench, bench.new_id((HOSTILE_IDS | ENDINGS | TOGETHER)[hostile]))

    @pytest.mark.parametrize("hostile", HOSTILE_STARTS)
    def test_hostile_start_round_trips(self, bench: Bench, hostile: str) -> None:
        """The same for ids that begin with what others take for something special."""
        if bench.shared:
            not_applicable("ids in a live store begin with the prefix")
        _round_trip(self, bench, HOSTILE_STARTS[hostile] + bench.new_id())

    @pytest.mark.parametrize("letter", ["a", "é", " "])
    def test_id_of_255_bytes_round_trips(self, bench: Bench, letter: str) -> None:
        """An id may be 255 bytes long."""
        image_id = bench.new_id("")
        room = 255 - len(image_id)
        count = room // len(letter.encode())
        _round_trip(self, bench, image_id + "z" * (room - count * len(letter.encode())) + letter * count)

    def test_ids_that_differ_are_different_images(self, bench: Bench) -> None:
        """Ids that only look alike, or are alike once decoded or folded, are different images."""
        base = bench.new_id("")
        ids = [base + tail for tail in ("a b", "a+b", "a%20b", "A b", "a b ", "e\u0301", "\u00e9", "%C3%A9")]
        uris = {image_id: bench.add(image_id, image_id.encode()).uri for image_id in ids}
        assert len(set(uris.values())) == len(ids)
        for image_id, uri in uris.items():
            assert_same_bytes(bench.read(uri), image_id.encode())
            bench.remove(uri)

    @pytest.mark.parametrize("refused", [*REFUSED_IDS, *REFUSED_FORMS])
    def test_id_that_is_not_allowed_is_refused(self, bench: Bench, refused: str) -> None:
        """An id that is not allowed is Invalid before anything else happens."""
        form = REFUSED_FORMS.get(refused)
        image_id: Any = form.format(bench.new_id()) if form else REFUSED_IDS[refused]
        touched = []

        def source() -> Iterator[bytes]:
            touched.append("source")
            yield b"data"

        with bench.writers_changed(lambda writer: None) as opened, self.refuses(bench, Invalid):
            bench.add(image_id, source())
        assert not touched
        assert not opened


def _calls(bench: Bench) -> dict[str, Callable[[Any], Any]]:
    """Everything that takes a location, as far as the store can do it."""
    store = bench.store
    calls: dict[str, Callable[[Any], Any]] = {"get": bench.read, "get_size": store.get_size}
    if bench.can(Capability.STAT):
        calls["stat"] = store.stat
    if bench.can(Capability.DELETE):
        calls["delete"] = store.delete
    if bench.can(Capability.ADD):
        calls["copy"] = lambda uri: bench.copy(uri, bench.new_id("copy"))
        known = Digests(None, "0" * 128)
        calls["copy with digests"] = lambda uri: bench.copy(uri, bench.new_id("copy"), digests=known)
    if bench.can(Capability.PRESIGN):
        calls["presign"] = lambda uri: store.presign(uri, 60)
    if bench.can(Capability.ACLS):
        calls["set_acls"] = store.set_acls
    return calls


class _OneOther:
    """The options of a store, but for one."""

    def __init__(self, conf: Any, name: str, value: str) -> None:
        self._conf = conf
        vars(self)[name] = value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conf, name)


def _spellings(uri: str) -> Iterator[str]:
    """URIs that a driver may take for this one, since it does not look at all of a URI."""
    yield from (uri + end for end in ("?", "?a=b", "#", "#a", "/", "//", ";a=b"))
    scheme, _, rest = uri.partition("://")
    yield f"{scheme.upper()}://{rest}"
    base, _, name = rest.rpartition("/")
    yield f"{scheme}://{base}//{name}"
    yield f"{scheme}://{base}/./{name}"
    yield f"{scheme}:///{rest}"
    # Letters need no encoding and may have one (RFC 3986, 6.2.2.2).
    yield f"{scheme}://{base}/%{ord(name[0]):02x}{name[1:]}"
    yield f"{scheme}://{base}/{re.sub('%[0-9A-F]{2}', lambda found: found[0].lower(), name)}"
    if base:
        yield f"{scheme}://%{ord(base[0]):02x}{base[1:]}/{name}"
        yield f"{scheme}://{base.upper()}/{name}"


def _round_trip(promises: Promises, bench: Bench, image_id: str) -> None:
    data = payload(1000, image_id)
    stored = bench.add(image_id, data)
    assert stored.uri.isascii()
    assert stored.uri.isprintable()
    assert " " not in stored.uri
    assert bench.location(stored.uri).uri == stored.uri
    assert_same_bytes(bench.read(stored.uri), data)
    if bench.access.can("read"):
        assert bench.access.read(image_id) == data, "the back end has it under another id"
    if bench.can(Capability.STAT):
        assert bench.store.stat(stored.uri).image_id in (image_id, None)
    if bench.can(Capability.LIST) and not bench.shared:
        bench.eventually(lambda: bench.find(image_id), lambda: f"{image_id!r} is not in the list")
    bench.remove(stored.uri)
    if bench.can(Capability.DELETE):
        with promises.refuses(bench, NotFound):
            bench.read(stored.uri)
