# SPDX-License-Identifier: Apache-2.0
"""The service description that clients written on oslo.vmware read first; govmomi's simulator has none.

The operations are those that glance_store calls, as pyVmomi's tables describe them; the types are in the schemas that
oslo.vmware brings.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pyVmomi import VmomiSupport, vim

_SCHEMAS = ("vim-types.xsd", "core-types.xsd", "query-types.xsd", "reflect-types.xsd")
_OPERATIONS = (
    *("RetrieveServiceContent", "CurrentTime", "Login", "Logout", "SessionIsActive", "TerminateSession"),
    *("FindByInventoryPath", "RetrievePropertiesEx", "ContinueRetrievePropertiesEx", "CancelRetrievePropertiesEx"),
    "DeleteDatastoreFile_Task",
)
_REFERENCE = "vim25:ManagedObjectReference"
_NAMESPACES = (
    'xmlns="http://schemas.xmlsoap.org/wsdl/" xmlns:soap="http://schemas.xmlsoap.org/wsdl/soap/" '
    'xmlns:vim25="urn:vim25" xmlns:xsd="http://www.w3.org/2001/XMLSchema"'
)


def write_wsdl(directory: Path, schemas: Path) -> None:
    """Make ``vimService.wsdl`` and what it refers to; ``schemas`` is a directory of oslo.vmware's, of vSphere 7."""
    # Loads the tables of the types.
    assert vim.ServiceInstance
    directory.mkdir()
    for name in _SCHEMAS:
        shutil.copy(schemas / name, directory)
    (directory / "vim.wsdl").write_text(
        f"""<definitions targetNamespace="urn:vim25" {_NAMESPACES}>
<types><schema targetNamespace="urn:vim25" xmlns="http://www.w3.org/2001/XMLSchema" elementFormDefault="qualified">
{"".join(f'<include schemaLocation="{name}"/>' for name in _SCHEMAS[:-1])}
{"".join(_elements(name) for name in _OPERATIONS)}
</schema></types>
{"".join(_messages(name) for name in _OPERATIONS)}
<portType name="VimPortType">{"".join(_port(name) for name in _OPERATIONS)}</portType>
<binding name="VimBinding" type="vim25:VimPortType">
<soap:binding style="document" transport="http://schemas.xmlsoap.org/soap/http"/>
{"".join(_binding(name) for name in _OPERATIONS)}
</binding></definitions>"""
    )
    (directory / "vimService.wsdl").write_text(
        f"""<definitions targetNamespace="urn:vim25Service" {_NAMESPACES}>
<import location="vim.wsdl" namespace="urn:vim25"/>
<service name="VimService"><port binding="vim25:VimBinding" name="VimPort">
<soap:address location="https://localhost/sdk"/></port></service></definitions>"""
    )


def _elements(operation: str) -> str:
    info = VmomiSupport.GetWsdlMethod("urn:vim25", operation).info
    parameters = f'<element name="_this" type="{_REFERENCE}"/>'
    for each in info.params:
        optional = bool(each.flags & VmomiSupport.F_OPTIONAL)
        parameters += _element(each.name, each.type, optional)
    if operation.endswith("_Task"):
        result = f'<element name="returnval" type="{_REFERENCE}"/>'
    else:
        result = "" if info.result in (None, type(None)) else _element("returnval", info.result, optional=True)
    return (
        f'<element name="{operation}"><complexType><sequence>{parameters}</sequence></complexType></element>'
        f'<element name="{operation}Response"><complexType><sequence>{result}</sequence></complexType></element>'
    )


def _element(name: str, kind: Any, optional: bool) -> str:
    several = issubclass(kind, list)
    item = kind.Item if several else kind
    if issubclass(item, VmomiSupport.ManagedObject):
        qualified = _REFERENCE
    else:
        namespace, short = VmomiSupport.GetQualifiedWsdlName(item)
        qualified = f"{'xsd' if 'XMLSchema' in namespace else 'vim25'}:{short}"
    least = ' minOccurs="0"' if optional or several else ""
    most = ' maxOccurs="unbounded"' if several else ""
    return f'<element name="{name}" type="{qualified}"{least}{most}/>'


def _messages(name: str) -> str:
    return "".join(
        f'<message name="{name}{end}Msg"><part name="parameters" element="vim25:{element}"/></message>'
        for end, element in (("Request", name), ("Response", f"{name}Response"))
    )


def _port(name: str) -> str:
    return (
        f'<operation name="{name}"><input message="vim25:{name}RequestMsg"/>'
        f'<output message="vim25:{name}ResponseMsg"/></operation>'
    )


def _binding(name: str) -> str:
    body = '<soap:body use="literal" parts="parameters"/>'
    return (
        f'<operation name="{name}"><soap:operation soapAction="urn:vim25/7.0" style="document"/>'
        f"<input>{body}</input><output>{body}</output></operation>"
    )
