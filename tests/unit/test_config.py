"""Configuration: what is read, what is refused, and whether the refusal says what to do."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from musidecar import secret
from musidecar.config import Cluster, ConfigError, Limits, Timing, load, parse, split_address

FILE = Path("cluster.toml")


def good() -> dict[str, Any]:
    return {
        "cluster": {"name": "c", "secret_file": "secret", "directory": "run"},
        "nodes": [
            {"id": i, "client": f"127.0.0.1:{6999 + i}", "backend": {"kind": "redis", "socket": f"{i}.sock"}}
            for i in (1, 2, 3)
        ],
    }


def problems(change: Callable[[dict[str, Any]], object]) -> list[str]:
    data = good()
    change(data)
    with pytest.raises(ConfigError) as caught:
        parse(data, FILE)
    return caught.value.problems


def test_defaults_and_paths() -> None:
    config = parse(good(), Path("/etc/mu/cluster.toml"))
    assert config.secret_file == Path("/etc/mu/secret")
    assert config.directory == Path("/etc/mu/run")
    assert config.node(2).backend.socket == Path("/etc/mu/2.sock")
    assert config.node(2).index == 1
    assert (config.node(3).client_host, config.node(3).client_port) == ("127.0.0.1", 7002)
    assert config.seed == 1
    assert config.fabric == "shm"
    assert config.timing == Timing()
    assert config.limits == Limits()


def test_reference_file_is_good_and_names_every_key_with_its_default(root: Path) -> None:
    path = root / "configs/cluster.toml"
    assert len(load(path).nodes) == 3
    # What is commented out shows the default: read it as if it were not, and nothing may change.
    text = path.read_text()
    for table, model in (("timing", Timing()), ("limits", Limits())):
        section = text.split(f"[{table}]")[1].split("\n[")[0]
        lines = [line[2:] for line in section.splitlines() if line.startswith("# ") and " = " in line]
        shown = tomllib.loads("\n".join(line for line in lines if line.split(" = ")[0].isidentifier()))
        assert set(shown) == set(type(model).model_fields)
        assert type(model).model_validate(shown) == model
    words = text.replace('"', " ").replace("{", " ").split()
    for model_fields in (Cluster.model_fields, load(path).cluster.__class__.model_fields):
        assert all(key in words or f"[{key}]" in words or f"[[{key}]]" in words for key in model_fields)
    assert all(key in words for key in load(path).node(1).backend.__class__.model_fields)


def test_error_names_file_key_and_reason() -> None:
    assert problems(lambda d: d["nodes"][1].update(client="localhost")) == [
        "cluster.toml: nodes[1].client: not host:port: 'localhost'"
    ]


def test_all_errors_at_once() -> None:
    def change(data: dict[str, Any]) -> None:
        data["nodes"][0]["client"] = "x:0"
        data["cluster"]["name"] = "a b"
        data["timing"] = {"tick_busy_us": "500"}

    text = "\n".join(problems(change))
    for key in ("nodes[0].client", "cluster.name", "timing.tick_busy_us"):
        assert f"cluster.toml: {key}: " in text


@pytest.mark.parametrize(
    ("where", "key", "expected"),
    [
        (lambda d: d["cluster"], "sead", "cluster.sead: unknown key: did you mean seed?"),
        (lambda d: d["nodes"][2], "clients", "nodes[2].clients: unknown key: did you mean client?"),
        (lambda d: d["nodes"][0]["backend"], "soket", "nodes[0].backend.soket: unknown key: did you mean socket?"),
        (lambda d: d.setdefault("timing", {}), "tick_us", "timing.tick_us: unknown key: did you mean"),
        (lambda d: d, "nodez", "nodez: unknown key: did you mean nodes?"),
        (lambda d: d["cluster"], "qqqqqq", "cluster.qqqqqq: unknown key: known here: name, "),
    ],
)
def test_unknown_key_suggests_the_nearest(where: Any, key: str, expected: str) -> None:
    assert any(expected in line for line in problems(lambda d: where(d).update({key: 1})))


@pytest.mark.parametrize(
    ("table", "values", "expected"),
    [
        ("timing", {"spin_us": 2000}, "timing.spin_us: 2000 must be less than tick_busy_us"),
        ("timing", {"tick_idle_us": 100}, "timing.tick_idle_us: 100 must be at least tick_busy_us"),
        ("timing", {"suspect_us": 900, "late_us": 800}, "timing.suspect_us: 900 must be at least twice"),
        ("timing", {"late_us": 4000}, "timing.late_us: 4000 must be at most suspect_us"),
        ("timing", {"fail_us": 3000}, "timing.fail_us: 3000 must be more than suspect_us"),
        ("timing", {"hazard_us": 3000}, "timing.hazard_us: 3000 must be less than suspect_us"),
        ("timing", {"request_us": 150_000}, "timing.request_us: 150000 must be less than fail_us"),
        ("timing", {"takeover_timeout_ms": 20}, "timing.takeover_timeout_ms: 20 must be"),
        ("timing", {"stale_ms": 7}, "timing.stale_ms: 7 must be more than feed_delay_us and tick_idle_us"),
        ("timing", {"backend_timeout_ms": 30}, "timing.backend_timeout_ms: 30 must be more than fail_us"),
        ("timing", {"fail_us": 0}, "timing.fail_us: input should be greater than or equal to 1, not 0"),
        ("timing", {"fail_us": True}, "timing.fail_us: input should be a valid integer, not True"),
        ("limits", {"ring_bytes": 3 << 20}, "limits.ring_bytes: 3145728 is not a power of two"),
        ("limits", {"piece_bytes_max": "4 MiB"}, "limits.piece_bytes_max: 4194304 is not in 1024..ring_bytes/8"),
        ("limits", {"ring_bytes": "16 megs"}, "limits.ring_bytes: not a size"),
        ("limits", {"pin_bytes_max": "12 MiB"}, "limits.pin_bytes_max: 12582912 is more than ring_bytes * 11/16"),
        ("limits", {"feed_bytes_max": 1000}, "limits.feed_bytes_max: 1000 is less than 1 MiB"),
        ("limits", {"transfer_bytes_per_s": 100}, "limits.transfer_bytes_per_s: 100 is less than 64 KiB"),
        ("limits", {"clients_max": 0}, "limits.clients_max: input should be greater"),
    ],
)
def test_values_are_checked_against_each_other(table: str, values: dict[str, Any], expected: str) -> None:
    assert any(expected in line for line in problems(lambda d: d.update({table: values})))


def test_sizes_with_units() -> None:
    data = good() | {"limits": {"ring_bytes": "32 MiB", "client_output_bytes_max": "1GB"}}
    limits = parse(data, FILE).limits
    assert (limits.ring_bytes, limits.client_output_bytes_max) == (32 << 20, 10**9)


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ({"kind": "herd", "socket": "s", "workers": 0}, "nodes[0].backend.workers: "),
        ({"kind": "postgres", "socket": "s"}, "nodes[0].backend.kind: "),
        ({"kind": "redis"}, "give either socket"),
        ({"socket": "s", "address": "h:1"}, "give either socket"),
        ({"address": "h:1", "spawn": True}, "spawn = true needs a socket"),
        ({"socket": "s", "spawn": True, "password_file": "p", "user": "u"}, "for a Redis that is already running"),
        ({"socket": "s", "user": "u"}, "user needs a password_file"),
        ({"socket": "x" * 120}, "too long for a Unix socket by"),
    ],
)
def test_backend_is_one_place_and_one_kind(backend: dict[str, Any], expected: str) -> None:
    assert any(expected in line for line in problems(lambda d: d["nodes"][0].update(backend=backend)))


def memcached(data: dict[str, Any], **more: Any) -> None:
    for i, node in enumerate(data["nodes"]):
        node["backend"] = {"kind": "memcached", "socket": f"m{i}", "spawn": True, **more}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"user": "u", "password_file": "p"}, "user is for a Redis"),
        ({"password_file": "p"}, "nodes[1].backend.password_file: is for kind = 'redis', and this is memcached"),
        ({"item_bytes_max": "100 KiB"}, "nodes[2].backend.item_bytes_max: input should be greater"),
        ({"memory_bytes": "8 KiB"}, "nodes[0].backend.memory_bytes: input should be greater"),
        ({"item_bytes_max": "40 MiB"}, "nodes[0].backend.item_bytes_max: 41943040 is more than half of memory_bytes"),
        ({"consistency": "strong"}, "nodes[0].backend.consistency: input should be 'exact' or 'cache'"),
        ({"spawn": False, "threads": 2}, "threads is for a server that is started here"),
    ],
)
def test_memcached_has_options_of_its_own(more: dict[str, Any], expected: str) -> None:
    found = problems(lambda data: memcached(data, **more))
    assert any(expected in line for line in found), found


def test_all_nodes_have_the_same_kind_with_the_same_limits() -> None:
    data = good()
    memcached(data, memory_bytes="1 GiB", item_bytes_max="2 MiB", threads=2, consistency="cache")
    config = parse(data, FILE)
    assert config.kind == "memcached" and config.nodes[0].backend.program == "memcached"
    assert config.nodes[0].backend.options() == {
        "memory_bytes": 1 << 30, "item_bytes_max": 2 << 20, "threads": 2, "consistency": "cache"
    }  # fmt: skip
    assert any(
        "nodes[1].backend.kind: memcached, and node 1's is redis" in line
        for line in problems(lambda d: d["nodes"][1].update(backend={"kind": "memcached", "socket": "m"}))
    )
    redis = {"socket": "s", "spawn": True, "memory_bytes": "1 GiB"}
    assert any(
        "nodes[0].backend.memory_bytes: is for kind = 'memcached', and this is redis" in line
        for line in problems(lambda d: d["nodes"][0].update(backend=redis))
    )

    def uneven(data: dict[str, Any]) -> None:
        memcached(data)
        data["nodes"][2]["backend"]["item_bytes_max"] = "2 MiB"

    assert any("nodes[2].backend.item_bytes_max: differs from node 1's" in line for line in problems(uneven))


def exchange(data: dict[str, Any], **more: Any) -> None:
    for i, node in enumerate(data["nodes"]):
        node["backend"] = {"kind": "liquibook", "socket": f"{i}.sock", "spawn": True, "fix_port": 9880 + i} | more


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"fix_port": 9880}, "nodes[1].backend.fix_port: 127.0.0.1:9880 is node 1's already"),
        ({"fix_port": 7001}, "nodes[0].backend.fix_port: 127.0.0.1:7001 is node 2's client already"),
        ({"fix_port": 0}, "nodes[0].backend.fix_port: port 0 is not in 1..65535"),
        ({"fix_port": True}, "nodes[0].backend.fix_port: not host:port: True"),
        ({"fix_decimals": 9}, "nodes[0].backend.fix_decimals: input should be less than or equal to 8"),
        ({"fix_name": "a b"}, "nodes[0].backend.fix_name: "),
        ({"symbols": ["A,B"]}, "nodes[0].backend.symbols[0]: 1 to 64 printable characters, without blank or comma"),
        ({"kind": "memcached"}, "nodes[0].backend.fix_port: is for kind = 'liquibook', and this is memcached"),
    ],
)
def test_an_exchange_has_options_of_its_own(more: dict[str, Any], expected: str) -> None:
    found = problems(lambda data: exchange(data, **more))
    assert any(expected in line for line in found), found


def test_a_fix_port_is_loopbacks_unless_told() -> None:
    data = good()
    exchange(data)
    data["nodes"][2]["backend"]["fix_port"] = "0.0.0.0:9880"
    assert [node.backend.fix_port for node in parse(data, FILE).nodes] == [
        "127.0.0.1:9880", "127.0.0.1:9881", "0.0.0.0:9880",
    ]  # fmt: skip

    def uneven(data: dict[str, Any]) -> None:
        exchange(data)
        data["nodes"][1]["backend"]["fix_decimals"] = 4

    assert any("nodes[1].backend.fix_decimals: differs from node 1's" in line for line in problems(uneven))


def test_nodes_are_three_or_five_with_ids_in_order_and_nothing_shared() -> None:
    assert "2 nodes" in problems(lambda d: d["nodes"].pop())[0]
    assert "ids must be 1 to 3" in problems(lambda d: d["nodes"].reverse())[0]
    assert "nodes[1].client: 127.0.0.1:7000 is node 1's already" in problems(
        lambda d: d["nodes"][1].update(client="127.0.0.1:7000")
    )[0].removeprefix("cluster.toml: ")
    assert "nodes[2].backend" in problems(lambda d: d["nodes"][2]["backend"].update(socket="1.sock"))[0]
    assert "cluster.seed: no node 5" in problems(lambda d: d["cluster"].update(seed=5))[0]
    assert "cluster.directory: too long" in problems(lambda d: d["cluster"].update(directory="x" * 90))[0]


BAD_ADDRESSES = ["", ":1", "h", "h:", "h:0", "h:65536", "h:1x", "a b:1", "::1:7", "[::1]", "[x]:1", 7, None]


def test_nodes_that_join_later() -> None:
    def add(data: dict[str, Any], joins: bool, count: int = 2) -> None:
        for i in range(4, 4 + count):
            node = {"id": i, "client": f"127.0.0.1:{8000 + i}", "backend": {"socket": f"{i}.sock", "spawn": True}}
            data["nodes"].append(node | {"joins": joins})

    assert "4 nodes" in problems(lambda d: add(d, False, 1))[0]
    assert "2 nodes that do not join later (3 in all)" in problems(lambda d: d["nodes"][2].update(joins=True))[0]
    assert "joins, and brings no data" in problems(lambda d: (add(d, True), d["cluster"].update(seed=4)))[0]
    data = good()
    add(data, True)
    config = parse(data, FILE)
    assert config.founders == (1, 2, 3) and len(config.nodes) == 5


@pytest.mark.parametrize("text", BAD_ADDRESSES)
def test_bad_addresses(text: object) -> None:
    with pytest.raises(ValueError, match=r"host:port|1\.\.65535"):
        split_address(text)


def test_a_node_may_read_otherwise_than_the_others() -> None:
    data = good()
    plain = parse(data, FILE)
    assert not any(map(plain.reads_locally, plain.nodes))
    data["cluster"]["reads"] = "local"
    data["nodes"][1]["reads"] = "linearizable"
    mixed = parse(data, FILE)
    assert [mixed.reads_locally(node) for node in mixed.nodes] == [True, False, True]
    (line,) = problems(lambda d: d["nodes"][1].update(reads="stale"))
    assert line == "cluster.toml: nodes[1].reads: input should be 'linearizable' or 'local', not 'stale'"


def test_good_addresses() -> None:
    assert split_address("10.0.0.1:65535") == ("10.0.0.1", 65535)
    assert split_address("[::1]:7000") == ("::1", 7000)


def test_files_that_cannot_be_read(folder: Path) -> None:
    for content, expected in ((None, "No such file"), ("[cluster]\nx", "not TOML: .*"), ("", "cluster: is missing")):
        path = folder / "c.toml"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigError, match=expected) as caught:
            load(path)
        assert all(line.startswith(f"{path}: ") for line in caught.value.problems)


def test_unknown_node(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no node 9: it has 1, 2, 3"):
        parse(good(), FILE).node(9)


def test_secret_is_private_and_whole(folder: Path) -> None:
    path = folder / "secret"
    with pytest.raises(ConfigError, match="no secret file: make one with"):
        secret.load(path)
    secret.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(secret.load(path)) == secret.SECRET_BYTES
    with pytest.raises(FileExistsError):
        secret.create(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read the secret: chmod 600"):
        secret.load(path)
    path.chmod(0o600)
    path.write_text("abc")
    with pytest.raises(ConfigError, match="not 64 hexadecimal digits"):
        secret.load(path)


def test_a_password_is_everybodys_or_nobodys() -> None:
    def change(data: dict[str, Any]) -> None:
        for node in data["nodes"][:2]:
            node["backend"]["password_file"] = "p"

    (line,) = problems(change)
    assert line.startswith("cluster.toml: nodes[2].backend.password_file: is missing: node 1 has one")


def test_password_comes_from_the_first_line(folder: Path) -> None:
    data = good()
    for node in data["nodes"]:
        node["backend"]["password_file"] = str(folder / "p")
    backend = parse(data, FILE).node(1).backend
    with pytest.raises(ConfigError, match="cannot read the password"):
        backend.password()
    (folder / "p").write_text("pa ss\nmore\n")
    assert backend.password() == "pa ss"
    (folder / "p").write_text("\n")
    with pytest.raises(ConfigError, match=r"1\.\.255 bytes"):
        backend.password()


def test_nodes_on_several_hosts() -> None:
    def change(data: dict[str, Any]) -> None:
        data["cluster"]["fabric"] = "verbs"
        data["verbs"] = {"mtu": 1024, "device": "rxe0"}
        data["nodes"][1]["verbs"] = {"device": "rxe1", "gid_index": 3}
        for i, node in enumerate(data["nodes"]):
            node["mesh"] = f"10.0.0.{i + 1}:7100"

    data = good()
    change(data)
    config = parse(data, FILE)
    assert config.node_verbs(1) == config.verbs
    assert config.node_verbs(2).model_dump() == {**config.verbs.model_dump(), "device": "rxe1", "gid_index": 3}
    assert config.node(3).mesh == "10.0.0.3:7100"
    data["nodes"][2]["mesh"] = data["nodes"][0]["mesh"]
    with pytest.raises(ConfigError, match=r"nodes\[2\]\.mesh: 10\.0\.0\.1:7100 is node 1's already"):
        parse(data, FILE)
    del data["nodes"][2]["mesh"]
    with pytest.raises(ConfigError, match=r"nodes\[2\]\.mesh: is missing: node 1 has one"):
        parse(data, FILE)
    data["cluster"]["fabric"] = "shm"
    with pytest.raises(ConfigError, match=r"nodes\[0\]\.mesh: is for nodes on several hosts"):
        parse(data, FILE)
    data["verbs"]["mtu"] = 1500
    with pytest.raises(ConfigError, match=r"verbs\.mtu: "):
        parse(data, FILE)
