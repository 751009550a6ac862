"""Questions that go beyond one trace: what a tuning changed."""
