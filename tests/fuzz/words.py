"""What people, scripts and templates write into fields, by mistake or on purpose."""

from typing import Any

SECRET = "hunter2-is-my-password"

URIS = (
    "file:///data/*.txt",
    "s3://bucket/part-*.jsonl.gz",
    "s3://bucket/team",
    "gs://bucket/ü/日本語",
    "https://host.example/a?b=c&d=%2e%2e#e",
    "simplecache::s3://bucket/a",
    "file:///" + "a" * 1016,
)

NUMBERS = (0.0, -0.0, 1.0, -1.5, 1e-320, 1e308, -1e308)

TIMES = (
    "2026-11-27T20:00:00Z",
    "2026-11-27T20:00:00.123456789Z",
    "2026-11-27T20:00:00+14:00",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59.999999-19:59",
)

KEYS = ("0", "1", "Crash", "node-1", "💥")
"""Of maps in status."""

TEXTS = (
    "a",
    "text",
    "transformer.h.0.*",
    "registry.example/team/trainer:1",
    "a" * 128,
    "日本語",
    "\u202egnp.exe",
    "e\u0301",
    "💥" * 20,
    "%s %d {} {{ .Values }} $(HOME) ${HOME}",
    "'; drop table jobs; --",
    "a\nb\tc",
    "null",
)

STRANGE: tuple[Any, ...] = (
    # nothing, or another type
    *(None, True, False, "", [], {}, [None], [[]], [{}], {"": None}, {"a": {"b": []}}),
    # numbers, and texts that look like one
    *(
        0,
        1,
        -1,
        2**31,
        2**53 + 1,
        2**63 - 1,
        2**63,
        -(2**63),
        10**30,
        0.1,
        5.0,
        -0.0,
        1e308,
        1e-320,
    ),
    *("0", "-1", "5", "5.0", "1e3", "0x10", "NaN", "Infinity", "true", "yes", "null", "~"),
    # texts
    *(" ", "\n", "\t a", "\u0000", "\ufeff", "\ud800", "\u202e", "e\u0301", "💥", "日本語"),
    *("%s%d%n", "{{ .Values.x }}", "$(HOSTNAME)", "'", '"', "\\", "`id`", "../../etc", "a" * 2_000),
    # where a secret does not belong
    *(f"s3://key:{SECRET}@bucket/a", f"s3://bucket/a?secret={SECRET}"),
)

NAMES = (
    *(
        "",
        "a.b",
        "A",
        "a_b",
        "-a",
        "a-",
        "a" * 51,
        "a" * 254,
        "日本語",
        "💥",
        "a b",
        "a/b",
        "..",
        "%41",
    ),
    *("\u0000", "\n", "kube-system", "0", None, 1, True, [], {}),
)
