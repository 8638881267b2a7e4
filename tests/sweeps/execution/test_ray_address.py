"""Where Ray is: the option goes before the variable, and an error names whichever it was."""

import pytest

from isoloop.sweeps.execution.ray_address import RayAddress
from isoloop.sweeps.execution.ray_cluster import RayCluster


@pytest.mark.parametrize(
    ("option", "variable", "value", "described"),
    [
        (None, None, None, "Ray on this machine"),
        (None, "", None, "Ray on this machine"),
        (None, "10.0.0.1:6379", "10.0.0.1:6379", "Ray at 10.0.0.1:6379 (RAY_ADDRESS)"),
        ("host:1", "10.0.0.1:6379", "host:1", "Ray at host:1 (--address)"),
        ("ray://host:10001", None, "ray://host:10001", "Ray at ray://host:10001 (--address)"),
        ("local", "10.0.0.1:6379", None, "Ray on this machine"),
        (None, "local", None, "Ray on this machine (RAY_ADDRESS)"),
        ("auto", None, "auto", "Ray that this machine belongs to (--address auto)"),
        ("auto", "10.0.0.1:6379", "10.0.0.1:6379", "Ray at 10.0.0.1:6379 (RAY_ADDRESS)"),
    ],
)
def test_the_option_then_the_variable_then_this_machine(option, variable, value, described):
    address = RayAddress.resolve(option, {} if variable is None else {"RAY_ADDRESS": variable})
    assert address.value == value
    assert str(address) == described


@pytest.mark.parametrize("text", ["nonsense", "h:99999999999", "http://127.0.0.1:8265", ":6379"])
def test_what_is_no_address_is_refused_by_the_name_of_its_source(text):
    with pytest.raises(ValueError, match=r"^--address must read host:port.*but got '.*--address local"):
        RayAddress.resolve(text, {})
    with pytest.raises(ValueError, match=r"^RAY_ADDRESS must read host:port.*but got '.*--address local"):
        RayAddress.resolve(None, {"RAY_ADDRESS": text})


@pytest.mark.parametrize("named_by", ["--address", "RAY_ADDRESS"])
def test_a_cluster_that_does_not_answer(named_by):
    with pytest.raises(ValueError, match=f"must answer at {named_by}, but 127.0.0.1:9 does not .*--address local"):
        RayCluster("127.0.0.1:9", named_by=named_by)
