import math

import pytest

from nsa_lab.bench.layer import measure_layer
from nsa_lab.bench.measure import Point
from nsa_lab.bench.run import run_bench
from nsa_lab.config import load_config, to_dict, to_yaml
from nsa_testing import tiny_config


@pytest.mark.parametrize("method", ["dense", "nsa"])
def test_one_layer_is_measured_at_the_head_layout_of_its_size(method):
    config = tiny_config("model.num_heads=4", f"attention.method={method}", "training.accelerator=cpu")
    measured = measure_layer(to_dict(config), Point("nano", method, 128), repeats=2)
    assert 0 < measured.seconds < 60
    assert math.isfinite(measured.peak_mib) and measured.base_mib > 0


@pytest.mark.parametrize("workers", ["fork"], indirect=True)
def test_a_run_is_measured_with_its_shape_under_its_name(workers, clips, tmp_path, capsys):
    run = tmp_path / "my-run"
    run.mkdir()
    small = tiny_config("model.hidden_size=32", "model.num_heads=2", "model.num_kv_heads=1", f"data.cache_dir={clips}")
    (run / "config.yaml").write_text(to_yaml(small))
    asked = {"tasks.needle.enabled": True, "model.path": f"{run}/", "data.cache_dir": str(clips), "training.threads": 1}
    rows = run_bench(load_config(None, asked), lengths=[64], repeats=1, out=None)
    assert [(row["size"], row["method"], row["video_tokens"]) for row in rows] == [
        ("my-run", "dense", 64),
        ("my-run", "nsa", 64),
    ]
    assert all(0 < row["seconds"] < 60 for row in rows) and capsys.readouterr().out.count("my-run") == 2
