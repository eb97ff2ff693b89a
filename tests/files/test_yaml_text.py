"""YAML is written for people: keys in their order, and letters of all languages unescaped."""

from __future__ import annotations

from reprune.files.yaml_text import read_yaml, write_yaml


def test_keys_keep_their_order_and_letters_stay_letters() -> None:
    content = {"model": "Münze", "sparsity": "2:4", "calibration": ["c4"], "lr": "1e-3"}
    written = write_yaml(content)
    assert written == "model: Münze\nsparsity: '2:4'\ncalibration:\n- c4\nlr: '1e-3'\n"
    assert read_yaml(written) == content
