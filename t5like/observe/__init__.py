"""What a run shows and records: metrics, trackers, the ledger of its time, the report page."""
