# SPDX-License-Identifier: Apache-2.0
"""The JSON schemas of the v2 API: what ``/v2/schemas/*`` serves and what bodies of images are checked against.

The image's schema is made once per application: the base properties, storelib's list of well-known custom properties
and the operator's own file. Nothing that is sent out is ever validated.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jsonschema import Draft4Validator, FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from jsonschema.validators import extend

from storelib.api.errors import BadRequest
from storelib.api.patterns import LONGEST, Pattern, TooSlow, is_expression
from storelib.exceptions import BadStoreConfiguration

Schema = dict[str, Any]

UUID = "^([0-9a-fA-F]){8}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){12}\\Z"
LONGEST_INT = 2**31 - 1

#: Base properties only the service sets.
READ_ONLY = frozenset(
    {
        "created_at",
        "updated_at",
        "status",
        "checksum",
        "size",
        "virtual_size",
        "direct_url",
        "self",
        "file",
        "schema",
        "stores",
        "os_hash_algo",
        "os_hash_value",
    }
)
#: Names that custom properties cannot have, nor anything that starts with RESERVED_PREFIX.
RESERVED = frozenset({"location", "deleted", "deleted_at"})
RESERVED_PREFIX = "os_glance"


def _is_integer(checker: Any, value: object) -> bool:
    """Whether JSON has an integer here: since draft 6, 1.0 is one, which clients in some languages write for 1."""
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def _unique_items(validator: Any, unique: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """jsonschema's own compares each item with each other one."""
    if unique and isinstance(instance, list) and len(set(map(_canonical, instance))) < len(instance):
        yield ValidationError("the items of the list are not all different")


_canonical = json.JSONEncoder(sort_keys=True).encode
_compiled = functools.lru_cache(maxsize=None)(Pattern)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """jsonschema's own leaves what users send to Python's way of looking for expressions, which may take hours."""
    if not isinstance(instance, str):
        return
    found = _compiled(pattern)
    if not found.takes(instance):
        yield ValidationError(f"it has more than the {LONGEST} characters that are compared with {pattern!r}")
    elif not found.search(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


#: Characters of a regular expression that a client sends.
LONGEST_REGEX = 4000
#: What texts with a ``format`` have to be.
FORMATS = FormatChecker()


@FORMATS.checks("regex")  # type: ignore[untyped-decorator]
def _is_regex(value: object) -> bool:
    """Whether a text is a regular expression; jsonschema's own reads those of any length and depth."""
    return not isinstance(value, str) or (len(value) <= LONGEST_REGEX and is_expression(value))


#: Checks what clients send.
Validator = extend(
    Draft4Validator,
    {"uniqueItems": _unique_items, "pattern": _pattern},
    type_checker=Draft4Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)
#: Errors of which the one that is told is the best.
_ERRORS = 100


def first_error(validator: Any, value: Any) -> Any:
    """The error that says best why ``value`` is not as the validator's schema says; None if it is."""
    return best_match(itertools.islice(validator.iter_errors(value), _ERRORS))


def _text(description: str, longest: int | None = None, *, null: bool = False, **more: Any) -> Schema:
    schema: Schema = {"type": ["null", "string"] if null else "string", "description": description}
    if longest is not None:
        schema["maxLength"] = longest
    return schema | more


def base_properties(container_formats: Iterable[str], disk_formats: Iterable[str]) -> Schema:
    """The properties every image has."""
    set_by_service: Schema = {"readOnly": True}
    return {
        "id": _text("An identifier for the image", pattern=UUID),
        "name": _text("Descriptive name for the image", 255, null=True),
        "status": _text(
            "Status of the image",
            enum=[
                "queued",
                "saving",
                "active",
                "killed",
                "deleted",
                "uploading",
                "importing",
                "pending_delete",
                "deactivated",
            ],
            **set_by_service,
        ),
        "visibility": _text("Who may see the image", enum=["community", "public", "private", "shared"]),
        "protected": {"type": "boolean", "description": "If true, the image cannot be deleted"},
        "os_hidden": {"type": "boolean", "description": "If true, lists leave the image out unless asked for it"},
        "checksum": _text("md5 of the image's data", 32, null=True, **set_by_service),
        "os_hash_algo": _text("Algorithm of os_hash_value", 64, null=True, **set_by_service),
        "os_hash_value": _text("Hexadecimal digest of the image's data", 128, null=True, **set_by_service),
        "owner": _text("Project that owns the image", 255, null=True),
        "size": {"type": ["null", "integer"], "description": "Bytes of the image's data", **set_by_service},
        "virtual_size": {
            "type": ["null", "integer"],
            "description": "Bytes of the disk that the image's data describes",
            **set_by_service,
        },
        "container_format": {
            "type": ["null", "string"],
            "description": "Format of the container",
            "enum": [None, *container_formats],
        },
        "disk_format": {"type": ["null", "string"], "description": "Format of the disk", "enum": [None, *disk_formats]},
        "created_at": _text("When the image was made (ISO 8601)", **set_by_service),
        "updated_at": _text("When the image was last changed (ISO 8601)", **set_by_service),
        "tags": {
            "type": "array",
            "description": "Words to find the image by",
            "items": {"type": "string", "maxLength": 255},
        },
        "direct_url": _text("URL of the data in its store", **set_by_service),
        "min_ram": {"type": "integer", "description": "MiB of memory needed to run the image"},
        "min_disk": {"type": "integer", "description": "GiB of disk needed to run the image"},
        "self": _text("Path of this image", **set_by_service),
        "file": _text("Path of the image's data", **set_by_service),
        "schema": _text("Path of this schema", **set_by_service),
        # Clients take every name that is not here for a custom property, and write it back.
        "os_glance_import_task": _text("The task that imports the image now", **set_by_service),
        "os_glance_importing_to_stores": _text("Stores that are still to be filled", **set_by_service),
        "os_glance_failed_import": _text("Stores that could not be filled", **set_by_service),
        "stores": _text("Stores that have the data, with commas between them", **set_by_service),
        "locations": {
            "type": "array",
            "description": "Where the data is",
            "items": {
                "type": "object",
                "properties": {
                    "url": {"type": "string", "maxLength": 255},
                    "metadata": {"type": "object"},
                    "validation_data": {
                        "type": "object",
                        "description": "What the data must be; kept, not returned",
                        "additionalProperties": False,
                        "required": ["os_hash_algo", "os_hash_value"],
                        "properties": {
                            "checksum": {"type": "string", "minLength": 32, "maxLength": 32},
                            "os_hash_algo": {"type": "string", "maxLength": 64},
                            "os_hash_value": {"type": "string", "maxLength": 128},
                        },
                    },
                },
                "required": ["url", "metadata"],
            },
        },
    }


#: The properties of a signature, of which an image has all or none.
SIGNATURE = (
    "img_signature",
    "img_signature_hash_method",
    "img_signature_key_type",
    "img_signature_certificate_uuid",
)
#: Kinds of keys on elliptic curves. Not all of them are in every release of cryptography.
CURVES = (
    *("ECC_SECT571K1", "ECC_SECT409K1", "ECC_SECT571R1", "ECC_SECT409R1"),
    *("ECC_SECP521R1", "ECC_SECP384R1"),
)
#: Some key managers write their ids without dashes.
CERTIFICATE_ID = f"{UUID}|^[0-9a-fA-F]{{32}}\\Z"

#: Custom properties that the service itself reads.
OBEYED: Schema = {
    "img_signature": _text(
        "Signature of the image's data, in base64", pattern="^[A-Za-z0-9+/=\\s]{1,8192}\\Z", is_base=False
    ),
    "img_signature_hash_method": _text(
        "Digest that was signed", enum=["SHA-224", "SHA-256", "SHA-384", "SHA-512"], is_base=False
    ),
    "img_signature_key_type": _text("Kind of the key that signed it", enum=["RSA-PSS", "DSA", *CURVES], is_base=False),
    "img_signature_certificate_uuid": _text(
        "Certificate of that key, in the key manager", pattern=CERTIFICATE_ID, is_base=False
    ),
    "cinder_encryption_key_id": _text(
        "Key, in the key manager, of the encrypted volume that this is the data of",
        pattern="^[A-Za-z0-9._:-]{1,255}\\Z",
        is_base=False,
    ),
    "cinder_encryption_key_deletion_policy": _text(
        "Whether that key is deleted with the image", enum=["on_image_deletion", "do_not_delete"], is_base=False
    ),
}

#: Custom properties with a meaning that many programs share.
WELL_KNOWN: Schema = {
    "kernel_id": _text("Image with the kernel, for AMI-style images", null=True, pattern=UUID, is_base=False),
    "ramdisk_id": _text("Image with the ramdisk, for AMI-style images", null=True, pattern=UUID, is_base=False),
    "instance_uuid": _text("Instance the image is a snapshot of", is_base=False),
    "architecture": _text("Processor architecture of the operating system", is_base=False),
    "os_distro": _text("Common name of the operating system's distribution", is_base=False),
    "os_version": _text("Version of the operating system", is_base=False),
    "description": _text("A description for people to read", is_base=False),
}

SELF_LINKS = [
    {"rel": "self", "href": "{self}"},
    {"rel": "enclosure", "href": "{file}"},
    {"rel": "describedby", "href": "{schema}"},
]

MEMBER: Schema = {
    "name": "member",
    "properties": {
        "member_id": _text("Project the image is shared with"),
        "image_id": _text("The image", pattern=UUID),
        "created_at": _text("When it was shared (ISO 8601)"),
        "updated_at": _text("When that was last changed (ISO 8601)"),
        "status": _text("What the project says to it", enum=["pending", "accepted", "rejected"]),
        "schema": {"readOnly": True, "type": "string"},
    },
}

TASK: Schema = {
    "name": "task",
    "properties": {
        "id": _text("An identifier for the task", pattern=UUID),
        "type": _text("What is done", enum=["import", "api_image_import", "location_import"]),
        "status": _text("How far it is", enum=["pending", "processing", "success", "failure"]),
        "input": {"type": ["null", "object"], "description": "What it was given"},
        "result": {"type": ["null", "object"], "description": "What it made"},
        "owner": _text("Project that owns the task", null=True),
        "message": _text("For people to read"),
        "image_id": _text("The image it works on"),
        "request_id": _text("The request that began it"),
        "user_id": _text("Who made that request", null=True),
        "expires_at": _text("When it is forgotten", null=True),
        "created_at": _text("When it began (ISO 8601)"),
        "updated_at": _text("When it last changed (ISO 8601)"),
        "self": {"readOnly": True, "type": "string"},
        "schema": {"readOnly": True, "type": "string"},
    },
}


def portable(pattern: str) -> str:
    """The pattern as clients get it: only Python knows ``\\Z``, and some languages refuse to compile it."""
    return pattern.replace("\\Z", "$")


def published(schema: Any) -> Any:
    """The schema with such patterns."""
    if isinstance(schema, Mapping):
        return {
            key: portable(value) if key == "pattern" and isinstance(value, str) else published(value)
            for key, value in schema.items()
        }
    return [published(each) for each in schema] if isinstance(schema, (list, tuple)) else schema


def bounded(properties: Mapping[str, Any]) -> Schema:
    """``properties`` with the bounds of numbers, which are not in what clients get.

    Those that check by the schema would refuse a number by an error of their own, before the service is asked.
    """
    bounds = {"minimum": 0, "maximum": LONGEST_INT}
    return {**properties, **{name: {**properties[name], **bounds} for name in ("min_ram", "min_disk")}}


def collection(name: str, item: Schema, *, paged: bool = False) -> Schema:
    """The schema of a list of ``item``."""
    properties: Schema = {name: {"type": "array", "items": item}, "schema": {"type": "string"}}
    links = [{"rel": "describedby", "href": "{schema}"}]
    if paged:
        properties |= {"first": {"type": "string"}, "next": {"type": "string"}}
        links = [{"rel": "first", "href": "{first}"}, {"rel": "next", "href": "{next}"}, *links]
    return {"name": name, "properties": properties, "links": links}


class ImageSchema:
    """The schema of images as this application was configured, and the one validator made of it."""

    def __init__(
        self,
        container_formats: Iterable[str],
        disk_formats: Iterable[str],
        custom: Mapping[str, Any],
        *,
        additional: bool,
        required: Iterable[str] = (),
    ) -> None:
        base = base_properties(container_formats, disk_formats)
        self.base_names = frozenset(base)
        self.additional = additional
        properties = merge(base, {**custom, **OBEYED})
        self.known_names = frozenset(properties)
        #: What an image has from its creation on. Not in the document: glanceclient begins with an empty image, which
        #: it checks.
        self.required = frozenset(required)
        self.document: Schema = {"name": "image", "properties": properties}
        if additional:
            self.document |= {"additionalProperties": {"type": "string"}, "links": SELF_LINKS}
        else:
            self.document["additionalProperties"] = False
        #: Custom properties that are no strings; they are stored as JSON.
        typed = custom.keys() - base.keys() - OBEYED.keys()
        self._typed = frozenset(name for name in typed if not _may_be_text(custom[name]))
        self._integers = frozenset(name for name, definition in properties.items() if _is_integer_only(definition))
        checked = {**self.document, "properties": bounded(properties)}
        self._validator = Validator(checked, format_checker=FORMATS)
        try:
            list(self._validator.iter_errors(dict.fromkeys(properties, "")))
        except Exception as error:  # references that lead nowhere raise what the library happens to use
            raise BadStoreConfiguration(f"property_schema_file is not a JSON schema: {str(error)[:200]}") from error

    def check_new(self, image: Mapping[str, Any]) -> None:
        """``check`` for all that a new image has."""
        self.check(image)
        for name in sorted(self.required - image.keys()):
            raise BadRequest(f"every image has to have the property {name!r} here")

    def check(self, image: Mapping[str, Any]) -> None:
        """Raise BadRequest, naming the property, unless ``image`` is as the schema says."""
        if not self.additional:
            for name in image.keys() - self.known_names:
                raise BadRequest(f"there is no image property {name!r}, and no others are accepted here")
        error = first_error(self._validator, image)
        if error is not None:
            where = "/".join(map(str, error.absolute_path))
            raise BadRequest(f"the image is not as its schema says: {where + ': ' if where else ''}{error.message}")

    def plain(self, name: str, value: Any) -> Any:
        """``value`` of a property as it is kept: an integer that was written as 1.0 is 1."""
        return int(value) if isinstance(value, float) and name in self._integers else value

    def shown(self, properties: dict[str, Any]) -> dict[str, Any]:
        """Custom properties as ``stored`` got them."""
        if self._typed.isdisjoint(properties):
            return properties
        return {name: _value(text) if name in self._typed else text for name, text in properties.items()}


def is_certificate_id(text: str) -> bool:
    """Whether ``text`` has the form of the ids that certificates have in key managers."""
    return re.search(CERTIFICATE_ID, text) is not None


def stored(value: Any) -> str | None:
    """A custom property as text, which all of them are to the database and to v1."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _value(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:  # from a time when it was text
        return text


def _is_integer_only(definition: Mapping[str, Any]) -> bool:
    types = definition.get("type", ())
    return types == "integer" or ("integer" in types and "number" not in types)


def _may_be_text(definition: Mapping[str, Any]) -> bool:
    return "type" not in definition or "string" in definition["type"]


def merge(base: Mapping[str, Any], custom: Mapping[str, Any]) -> Schema:
    """Base and custom properties together; raises BadStoreConfiguration if a custom one redefines a base one."""
    for name, definition in custom.items():
        if name in base and base[name] != definition:
            raise BadStoreConfiguration(f"the image property {name!r} is a base property and cannot be defined again")
    return {**base, **{name: {**value, "is_base": False} for name, value in custom.items() if name not in base}}


def custom_properties(path: str | None) -> tuple[Schema, list[str]]:
    """The well-known properties and those of the operator's file, and which every image has to have.

    Raises BadStoreConfiguration.
    """
    if not path:
        return dict(WELL_KNOWN), []
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except OSError as error:
        raise BadStoreConfiguration(f"cannot read property_schema_file {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadStoreConfiguration(f"property_schema_file {path} is not JSON: {error}") from error
    properties: Any = found
    required: Any = []
    # A property may itself be called "properties"; then it has a type.
    if isinstance(found, dict) and "properties" in found and not _is_definition(found["properties"]):
        properties, required = found["properties"], found.get("required") or []
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise BadStoreConfiguration(f"property_schema_file {path}: 'required' is not a list of names")
    if not isinstance(properties, dict) or not all(isinstance(value, dict) for value in properties.values()):
        raise BadStoreConfiguration(f"property_schema_file {path} is not an object of property definitions")
    try:
        Draft4Validator.check_schema({"properties": properties})
    except SchemaError as error:
        raise BadStoreConfiguration(f"property_schema_file {path} is not a JSON schema: {error.message}") from error
    try:
        _check_patterns(properties)
    except TooSlow as error:
        raise BadStoreConfiguration(f"property_schema_file {path}: {error}; write it in another way") from error
    return {**WELL_KNOWN, **properties}, required


def _check_patterns(schema: Any) -> None:
    """Raise TooSlow for an expression somewhere in a schema that cannot be looked for in bounded time."""
    if isinstance(schema, list):
        for each in schema:
            _check_patterns(each)
    if not isinstance(schema, dict):
        return
    for name, value in schema.items():
        if name == "pattern" and isinstance(value, str):
            _pattern_of(value)
        elif name == "patternProperties" and isinstance(value, dict):
            # jsonschema's own, for names of any length.
            for pattern in value:
                if not _pattern_of(pattern).is_linear:
                    raise TooSlow(f"the pattern {pattern!r} of names has to begin with ^ and may repeat one thing only")
        _check_patterns(value)


def _pattern_of(text: str) -> Pattern:
    try:
        return _compiled(text)
    except TooSlow as error:
        raise TooSlow(f"the pattern {text!r}: {error}") from error
    except re.error as error:
        raise TooSlow(f"the pattern {text!r} is no regular expression: {error}") from error


def _is_definition(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), (str, list))
