"""Output of a run: metrics, trackers, the ledger of its time, the report page."""
