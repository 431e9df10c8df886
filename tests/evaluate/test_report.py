import json
import math

from liquidmm.evaluate.metrics import Accuracy
from liquidmm.evaluate.report import Report

SETTINGS = {"seed": 0, "limit": 2}


def test_report_as_json_and_as_table() -> None:
    report = Report(task="captions", settings=dict(SETTINGS))
    report.add_accuracy("trained", Accuracy(right=2, n=4))
    report.add("chance", 0.0736, "%")
    report.add("lost", math.inf, "dB")
    result = report.to_dict()
    assert result["figures"] == {
        "trained": {"value": 50.0, "unit": "%"},
        "chance": {"value": 0.0736, "unit": "%"},
        "lost": {"value": None, "unit": "dB"},
    }
    assert result["counts"] == {"trained": {"right": 2, "n": 4, "low": 15.0, "high": 85.0}}
    assert result["settings"] == SETTINGS
    json.dumps(result, allow_nan=False)
    assert report.to_table().splitlines() == [
        "captions",
        "  trained         50 %  (2 of 4; 95 % interval 15.0 to 85.0)",
        "  chance      0.0736 %",
        "  lost           inf dB",
        "  seed 0, limit 2",
    ]
