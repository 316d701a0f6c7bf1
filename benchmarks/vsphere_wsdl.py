# SPDX-License-Identifier: Apache-2.0
"""The WSDL that oslo.vmware wants of a vCenter and the simulator has not: the few calls of glance_store's driver.

Made from pyVmomi's tables of methods and the schemas of types that oslo.vmware brings.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import oslo_vmware
from pyVmomi import VmomiSupport, vim  # noqa: F401  (vim registers the methods)

METHODS = (
    "RetrieveServiceContent",
    "Login",
    "Logout",
    "SessionIsActive",
    "TerminateSession",
    "FindByInventoryPath",
    "RetrieveProperties",
    "RetrievePropertiesEx",
    "ContinueRetrievePropertiesEx",
    "CancelRetrievePropertiesEx",
)
SCHEMAS = ("core-types.xsd", "query-types.xsd", "vim-types.xsd")

_DEFINITIONS = """<?xml version="1.0" encoding="UTF-8"?>
<definitions targetNamespace="urn:vim25" xmlns="http://schemas.xmlsoap.org/wsdl/"
 xmlns:soap="http://schemas.xmlsoap.org/wsdl/soap/" xmlns:vim25="urn:vim25"
 xmlns:xsd="http://www.w3.org/2001/XMLSchema">
 <types><schema targetNamespace="urn:vim25" xmlns="http://www.w3.org/2001/XMLSchema" xmlns:vim25="urn:vim25"
  xmlns:xsd="http://www.w3.org/2001/XMLSchema" elementFormDefault="qualified">{includes}{elements}</schema></types>
 {messages}
 <portType name="VimPortType">{operations}</portType>
 <binding name="VimBinding" type="vim25:VimPortType">
  <soap:binding style="document" transport="http://schemas.xmlsoap.org/soap/http"/>{bindings}</binding>
</definitions>"""

_SERVICE = """<?xml version="1.0" encoding="UTF-8"?>
<definitions targetNamespace="urn:vim25Service" xmlns="http://schemas.xmlsoap.org/wsdl/"
 xmlns:soap="http://schemas.xmlsoap.org/wsdl/soap/" xmlns:vim25="urn:vim25">
 <import location="vim.wsdl" namespace="urn:vim25"/>
 <service name="VimService"><port binding="vim25:VimBinding" name="VimPort">
  <soap:address location="https://localhost/sdk"/></port></service>
</definitions>"""


def write(directory: Path) -> str:
    """Write the files; returns the URL of the WSDL."""
    schemas = Path(oslo_vmware.__file__).parent / "wsdl" / "7.0"
    for each in schemas.glob("*.xsd"):
        shutil.copy(each, directory)
    methods = [VmomiSupport.GetWsdlMethod("urn:vim25", name).info for name in METHODS]
    text = _DEFINITIONS.format(
        includes="".join(f'<include schemaLocation="{name}"/>' for name in SCHEMAS),
        elements="".join(map(_elements, methods)),
        messages="".join(_message(name) + _message(f"{name}Response") for name in METHODS),
        operations="".join(
            f'<operation name="{name}"><input message="vim25:{name}Msg"/>'
            f'<output message="vim25:{name}ResponseMsg"/></operation>'
            for name in METHODS
        ),
        bindings="".join(
            f'<operation name="{name}"><soap:operation soapAction="urn:vim25/7.0" style="document"/>'
            '<input><soap:body use="literal" parts="parameters"/></input>'
            '<output><soap:body use="literal" parts="parameters"/></output></operation>'
            for name in METHODS
        ),
    )
    (directory / "vim.wsdl").write_text(text)
    (directory / "vimService.wsdl").write_text(_SERVICE)
    return (directory / "vimService.wsdl").as_uri()


def _message(name: str) -> str:
    return f'<message name="{name}Msg"><part name="parameters" element="vim25:{name}"/></message>'


def _elements(info: Any) -> str:
    """A call and what it returns."""
    given = '<element name="_this" type="vim25:ManagedObjectReference"/>'
    for each in info.params:
        optional = issubclass(each.type, list) or each.flags & VmomiSupport.F_OPTIONAL
        given += _element(each.name, each.type, optional)
    told = "" if info.result is type(None) else _element("returnval", info.result, True)
    return (
        f'<complexType name="{info.wsdlName}RequestType"><sequence>{given}</sequence></complexType>'
        f'<element name="{info.wsdlName}" type="vim25:{info.wsdlName}RequestType"/>'
        f'<element name="{info.wsdlName}Response"><complexType><sequence>{told}</sequence></complexType></element>'
    )


def _element(name: str, kind: type, optional: bool) -> str:
    several = issubclass(kind, list)
    item: Any = kind.Item if several else kind  # type: ignore[attr-defined]
    namespace, local = VmomiSupport.GetQualifiedWsdlName(item)
    if issubclass(item, VmomiSupport.ManagedObject):
        local = "ManagedObjectReference"
    prefix = "xsd" if "XMLSchema" in namespace else "vim25"
    occurs = ' minOccurs="0"' * bool(optional) + ' maxOccurs="unbounded"' * several
    return f'<element name="{name}" type="{prefix}:{local}"{occurs}/>'
