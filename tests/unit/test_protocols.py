"""Which protocol clients choose is in the service models: hutch must speak it, and know of every other they may choose."""

from pathlib import Path

import botocore.session
import pytest

import hutch.api.aws
from hutch.api.gateway.rest_xml import RestXmlCodec
from hutch.api.gateway.service_model import load_model

SERVED = sorted(p.parent.name for p in Path(hutch.api.aws.__path__[0]).glob("*/service.py"))
SPOKEN = {"json", "query", "ec2", "rest-json", "rest-xml"}


@pytest.mark.parametrize("name", SERVED)
def test_clients_choose_a_protocol_that_hutch_speaks(name: str) -> None:
    model = botocore.session.get_session().get_service_model(name)
    assert load_model(name).protocol == model.resolved_protocol
    # Newer SDKs prefer smithy-rpc-v2-cbor where a model lists it: to serve such a service is to serve that as well.
    assert set(model.metadata.get("protocols", [model.metadata["protocol"]])) <= SPOKEN


@pytest.mark.parametrize("text", ["1 Jan 99999999999999999999 0:0:0 +0000", "never"])
def test_a_header_that_is_no_date_stays_text_for_validation_to_refuse(text: str) -> None:
    model = load_model("s3")
    operation = model.operation("GetObject")
    assert operation is not None
    labels = {"Bucket": "b", "Key": "k"}
    read = RestXmlCodec(model).read(operation, labels, b"", {"if-modified-since": text}, b"")
    assert read == {**labels, "IfModifiedSince": text}
