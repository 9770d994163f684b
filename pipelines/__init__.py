"""One thin module per DVC stage: read settings, call `ofq_core`, write result files, track."""
