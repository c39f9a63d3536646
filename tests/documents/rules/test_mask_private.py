import pytest

from lspm_ray.documents.rule import Rule
from lspm_ray.errors import ConfigError


def apply(text, **fields):
    return Rule.make({"rule": "mask_private", **fields}).apply(text)


@pytest.mark.parametrize(
    "address",
    ["a@b.de", "jane.doe+tag@mail.example.co.uk", "j_d%x-y@x-y.org", "müller@bücher.example", "x@y.xn--p1ai"],
)
def test_masks_addresses(address):
    assert apply(f"Write to <{address}>, or {address}.") == "Write to <<email>>, or <email>."


@pytest.mark.parametrize("text", ["@someone said", "a@b", "me @ home.de", "3@4.5", "a@@b.de", "a" * 65 + "@b.de"])
def test_leaves_what_is_no_address(text):
    assert apply(text) == text


@pytest.mark.parametrize("ip", ["127.0.0.1", "255.255.255.255", "8.8.8.8", "010.001.000.009"])
def test_masks_ips(ip):
    assert apply(f"At {ip}:8080, ({ip}) and {ip}.") == "At <ip>:8080, (<ip>) and <ip>."


@pytest.mark.parametrize("text", ["256.1.1.1", "1.2.3", "1.2.3.4.5", "v1.2.3.4", "1.2.3.4th", "1.2.3.444"])
def test_leaves_what_is_no_ip(text):
    assert apply(text) == text


@pytest.mark.parametrize(
    "phone",
    [
        "+49 30 1234567",
        "+1 (212) 555-0123",
        "+442079460958",
        "0049 30/1234567",
        "(212) 555-0123",
        "212-555-0123",
        "1-212-555-0123",
        "212.555.0123",
        "030 1234567",
        "(0171) 123 45 67",
        "0171/1234567",
        "020 7946 0958",
        "06 12 34 56 78",
    ],
)
def test_masks_phone_numbers(phone):
    assert apply(f"Call {phone}, or {phone}.") == "Call <phone>, or <phone>."


@pytest.mark.parametrize(
    "text",
    [
        "on 2020-01-31 and 31/01/2020",
        "on 01.02.2020 12:30",
        "from 1990 to 2000, 1,234,567 of 12345678",
        "pi is 3.14159265358979 and 0.0123456789",
        "ISBN 978-3-16-148410-0",
        "item A0123456789",
        "12:30:45.123456789",
        "5-4 and 10 000 000",
        "212-555-01234 and 212-555-0123-4",
    ],
)
def test_leaves_other_numbers(text):
    assert apply(text) == text


def test_each_can_be_switched_off():
    text = "a@b.de 8.8.8.8 212-555-0123"
    assert apply(text) == "<email> <ip> <phone>"
    assert apply(text, emails=False) == "a@b.de <ip> <phone>"
    assert apply(text, ips=False) == "<email> 8.8.8.8 <phone>"
    assert apply(text, phones=False) == "<email> <ip> 212-555-0123"


def test_refuses_to_do_nothing():
    with pytest.raises(ConfigError, match="nothing is to be masked"):
        apply("", emails=False, ips=False, phones=False)
