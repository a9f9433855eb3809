"""Plain words of YAML, and what kubectl makes of each.

One table for both judges: tests/unit asks our reader, tests/api a real kubectl.
"""

from typing import Any

YAML_WORDS: dict[str, Any] = {
    # numbers
    "6e-4": 6e-4, "6.e4": 60000, "1e3": 1000, "6E+4": 60000, "400.0": 400, "1.": 1, ".5e3": 500,
    "-.5": -0.5, "+5": 5, "1_000": 1000, "1__0": 10, "1_000.5": 1000.5, "1_": 1, "1e-400": 0,
    "010": 8, "08": 8, "09.5": 9.5, "0o17": 15, "-0o7": -7, "0x1F": 31, "0X1f": 31, "0b11": 3,
    "0_8": 8, "00": 0, "12345678901234567890123": 1.2345678901234568e22,
    # truths, and nothing
    "y": True, "Y": True, "yes": True, "on": True, "ON": True, "True": True, "n": False,
    "No": False, "off": False, "FALSE": False, "~": None, "Null": None,
    # texts
    "1:30": "1:30", "2026-01-01": "2026-01-01", "2026-01-01T00:00:00Z": "2026-01-01T00:00:00Z",
    "5e": "5e", "0x": "0x", "_1": "_1", "=": "=", "yEs": "yEs", ".nanx": ".nanx", '"400"': "400",
    "'y'": "y", "!!str 5": "5",
}  # fmt: skip
#: As keys of a block, each of which is a text.
YAML_KEYS: dict[str, str] = {"1": "1", "1.5": "1.5", "yes": "true", "n": "false", "a": "a"}
YAML_TEXT = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: words}\n" + "".join(
    [
        "words:\n",
        *(f"- {word}\n" for word in YAML_WORDS),
        "keys:\n",
        *(f"  {key}: x\n" for key in YAML_KEYS),
    ]
)
