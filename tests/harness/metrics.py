"""The Prometheus text format, as far as the tests need it."""

import re

SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)(?: \d+)?$")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


class Metrics:
    """Samples of one scrape: a list of (labels, value) by name."""

    def __init__(self):
        self.samples = {}
        self.types = {}

    def names(self):
        return sorted(self.samples)

    def series(self, name):
        return self.samples.get(name, [])

    def total(self, name, **labels):
        """Sum over the series of `name` that carry `labels`; fails when the name is not there at all."""
        assert name in self.samples, f"no metric {name}; there are {self.names()}"
        return sum(v for have, v in self.samples[name] if all(have.get(k) == w for k, w in labels.items()))


def parse_metrics(text):
    metrics = Metrics()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ", 3)
            metrics.types[name] = kind
        if not line.strip() or line.startswith("#"):
            continue
        match = SAMPLE.match(line)
        assert match, f"not a sample line: {line!r}"
        name, labels, value = match.groups()
        metrics.samples.setdefault(name, []).append((dict(LABEL.findall(labels or "")), float(value)))
    return metrics
