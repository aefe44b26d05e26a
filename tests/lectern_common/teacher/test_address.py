import pytest

from lectern_common.teacher.address import MAX_REPLICAS, checked_address, replica_addresses


@pytest.mark.parametrize(
    ("address", "servers"),
    [
        ("127.0.0.1:50051", ["127.0.0.1:50051"]),
        ("teacher:1", ["teacher:1"]),
        ("[::1]:50051", ["[::1]:50051"]),
        ("a:1,b.example.org:2,[::1]:3", ["a:1", "b.example.org:2", "[::1]:3"]),
        ("dns:///teachers:50051", ["dns:///teachers:50051"]),
        ("unix:/run/teacher.sock", ["unix:/run/teacher.sock"]),
        ("unix:/run/a,unix:/run/b", ["unix:/run/a", "unix:/run/b"]),
    ],
)
def test_an_address_is_one_server_several_or_a_name_for_several(address, servers):
    assert checked_address(address) == address
    assert list(replica_addresses(address)) == servers


@pytest.mark.parametrize(
    "address",
    [
        "",
        "teacher",
        ":50051",
        "teacher:",
        "teacher:0",
        "teacher:65536",
        "teacher:-1",
        "teacher:5x",
        "teacher:\u0665",
        "teacher:99999999999999999999",
        "a b:1",
        "a\n:1",
        "user@host:1",
        "host/path:1",
        "host?x:1",
        "h" * 254 + ":1",
        "[::1:50051",
        "[teacher]:50051",
        "::1:50051",
        # What gRPC would take for a scheme of its own; for "unix:1" see test_replicas.py.
        "unix:/run/teacher:1",
        "unix:/run/a%2fb",
        "unix:/run/a b",
        "unix:/run/teacher/",
        "unix:/" + "a" * 107,
        "unix-abstract:a:1",
        "ipv4:127.0.0.1:1",
        "xds:///a:1",
        "dns://evil.example/a:1",
        "dns:a:1",
        "dns:///",
        "dns:///a",
        "dns:///a:1,b:2",
        "dns:///dns:///a:1",
        "a:1,",
        ",a:1",
        "a:1,,b:1",
        "a:1, b:1",
        "a:1,dns:///b:1",
        "a:1,a:1",
        ",".join(f"a:{port}" for port in range(1, MAX_REPLICAS + 2)),
    ],
)
def test_an_invalid_address_is_refused(address):
    with pytest.raises(ValueError, match=r"^(must|names)"):
        checked_address(address)
