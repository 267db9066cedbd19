"""What is counted comes out as Prometheus wants it: counters with their labels, histograms that add up."""

from prometheus_client import generate_latest

from atelier.telemetry import REGISTRY, LabelledCounter, LabelledDurations


def test_counter_adds_up_by_label() -> None:
    """Each set of values by itself; one that was never counted is 0."""
    counter = LabelledCounter("test_things", "Things.", "kind")
    try:
        counter.count("red")
        counter.count("red", by=2)
        counter.count("blue")
        assert (counter.value("red"), counter.value("green")) == (3, 0)
        text = generate_latest(REGISTRY).decode()
    finally:
        REGISTRY.unregister(counter)
    assert "# TYPE test_things_total counter" in text
    assert 'test_things_total{kind="red"} 3.0' in text
    assert 'test_things_total{kind="blue"} 1.0' in text


def test_histogram_has_cumulative_buckets_count_and_sum() -> None:
    """A duration on a bound belongs below it; one beyond all bounds is in +Inf alone."""
    durations = LabelledDurations("test_waits_seconds", "Waits.", "route")
    try:
        for duration_s in (0.0004, 0.0005, 0.003, 99.0):
            durations.observe(duration_s, "/a")
        text = generate_latest(REGISTRY).decode()
    finally:
        REGISTRY.unregister(durations)
    counts = {
        bound: float(text.split(f'test_waits_seconds_bucket{{le="{bound}",route="/a"}} ')[1].split("\n")[0])
        for bound in ("0.0005", "0.002", "0.005", "10.0", "+Inf")
    }
    assert counts == {"0.0005": 2, "0.002": 2, "0.005": 3, "10.0": 3, "+Inf": 4}
    assert 'test_waits_seconds_count{route="/a"} 4.0' in text
    assert float(text.split('test_waits_seconds_sum{route="/a"} ')[1].split("\n")[0]) == 99.0039
