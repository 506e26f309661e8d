import math

import pytest

from nsa_lab.bench.layer import measure_layer
from nsa_lab.bench.measure import Point
from nsa_lab.config import to_dict
from nsa_testing import tiny_config


@pytest.mark.parametrize("method", ["dense", "nsa"])
def test_one_layer_is_measured_at_the_head_layout_of_its_size(method):
    config = tiny_config("model.num_heads=4", f"attention.method={method}", "training.accelerator=cpu")
    measured = measure_layer(to_dict(config), Point("nano", method, 128), repeats=2)
    assert 0 < measured.seconds < 60
    assert math.isfinite(measured.peak_mib) and measured.base_mib > 0
